from ana2 import *
import numpy as np
def ev(name,rej):
    agg=collections.defaultdict(lambda:[0,0,0])
    for o in out:
        if o[7] in lack and o[8]>=.5: r=o[7]
        elif rej(o): r='unknown'
        else: r=P(o[3])
        g='neg_known_to_lib' if o[0].startswith('neg') and o[1] in libiso else 'neg' if o[0].startswith('neg') else 'listed_lack' if o[0]=='listed' and o[1] in lack else 'listed_lib' if o[0]=='listed' else 'ood'
        a=agg[g]; a[0]+=1; a[1]+=r==o[1]; a[2]+=r=='unknown'
    print(name,{k:(round(v[1]/v[0],3),round(v[2]/v[0],3)) for k,v in agg.items()})
mc=lambda o:(o[4]-o[6])/o[2]
for t in (0,.05,.1,.15,.2,.3,.5,.7,1):
    ev(f'margin<{t}',lambda o:mc(o)<t)
    ev(f'margin<{t} and not agree',lambda o:mc(o)<t and o[7]!=P(o[3]))
    ev(f'margin<{t} and not agree.3',lambda o:mc(o)<t and not(o[7]==P(o[3]) and o[8]>.3))
