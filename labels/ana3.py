from ana2 import *
import numpy as np
def roc(name,score,groups):
    good=[score(o) for o in out if o[0] in('xcopa','mgsm','c4','belebele') or (o[0]=='listed' and o[1] in lib) if P(o[3])==o[1]]
    bad=[score(o) for o in out if o[0].startswith('neg') and o[1] not in libiso and o[7] not in lack]
    good,bad=np.array(good),np.array(bad)
    for q in (.01,.02,.05,.1):
        t=np.quantile(good,q); print(name,'loses',q,'threshold',round(float(t),4),'rejects',round(float((bad<t).mean()),3))
roc('margin/char',lambda o:(o[4]-o[6])/o[2],0)
roc('margin',lambda o:(o[4]-o[6]),0)
roc('score/char',lambda o:o[4]/o[2],0)
roc('margin/sqrt',lambda o:(o[4]-o[6])/o[2]**.5,0)
roc('margin if other',lambda o:(o[4]-o[6])/o[2]**.5 if o[7]=='other' else 9,0)
roc('ours p(lib answer)',lambda o:0 if o[7]!=P(o[3]) else o[8],0)
# lack threshold
for t in (.3,.4,.5,.6,.7,.8):
    pos=[o for o in out if o[0]=='listed' and o[1] in lack]
    n=[o for o in out if o[0].startswith('neg') and o[1] not in libiso]; ood=[o for o in out if o[0] in('xcopa','mgsm','c4','belebele')]
    print(t,'lack found',sum(o[7]==o[1] and o[8]>=t for o in pos)/len(pos),'unseen taken for lack',sum(o[7] in lack and o[8]>=t for o in n)/len(n),'ood',sum(o[7] in lack and o[8]>=t for o in ood)/len(ood))
