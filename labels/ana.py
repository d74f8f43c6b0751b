import json,sys,collections
sys.path.insert(0,'/tmp/h/labels')
from pretrain.data.languages import LANGUAGES
out=json.load(open(f'/tmp/h/me/labels/out_{sys.argv[1]}.json'))
mp={l.py3langid:l.iso for l in LANGUAGES if l.py3langid}
extra={'la':'lat','br':'bre','fy':'fry','gd':'gla','eo':'epo','ku':'kmr','so':'som','ha':'hau','ig':'ibo','yo':'yor','zu':'zul','xh':'xho','qu':'que','an':'arg','co':'cos','wa':'wln','uzs':'uzs'}
P=lambda c: mp.get(c) or extra.get(c,c)
ours={o[7] for o in out}
lib={l.iso for l in LANGUAGES if l.py3langid}
lack={l.iso for l in LANGUAGES if not l.py3langid and l.udhr}
def show(name,f):
    print(name)
    agg=collections.defaultdict(lambda:[0,0,0])
    for o in out:
        r=f(o); a=agg[o[0] if o[0]!='listed' else ('listed_lack' if o[1] in lack else 'listed_lib')]
        a[0]+=1; a[1]+= r==o[1]; a[2]+= r=='unknown'
    for k,v in agg.items(): print('  ',k,v[0],'right',round(v[1]/v[0],3),'unknown',round(v[2]/v[0],3),'wrong',round(1-(v[1]+v[2])/v[0],3))
show('lib',lambda o:P(o[3]))
show('ours',lambda o:o[7])
def both(tau,margin=None):
    def f(o):
        p=P(o[3]); q=o[7]; 
        if q in lack:
            return q if o[8]>=tau else 'unknown' if o[8]>=tau/2 and False else p
        return p
    return f
for t in (.3,.5,.7,.9): show(f'lack>{t}',both(t))
def agree(tl,to):
    def f(o):
        p=P(o[3]); q=o[7]
        if q in lack: return q if o[8]>=tl else 'unknown'
        if p==q: return p
        if p in ours: return 'unknown' if o[8]>=to else p   # both know both and differ
        return p
    return f
for tl,to in ((.3,.3),(.5,.3),(.5,.5),(.5,.1),(.6,0)): show(f'agree {tl} {to}',agree(tl,to))
