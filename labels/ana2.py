import json,sys,collections
sys.path.insert(0,'/tmp/h/labels')
from pretrain.data.languages import LANGUAGES
out=json.load(open(f'/tmp/h/me/labels/out_{sys.argv[1]}.json'))
mp={l.py3langid:l.iso for l in LANGUAGES if l.py3langid}
extra={'la':'lat','br':'bre','fy':'fry','gd':'gla','eo':'epo','ku':'kmr','so':'som','ha':'hau','ig':'ibo','yo':'yor','zu':'zul','xh':'xho','qu':'quy','an':'arg','co':'cos','wa':'wln','uzs':'uzs','st':'sot','nso':'nso','ln':'lin','lg':'lug','rw':'kin','sn':'sna','mg':'plt','tk':'tuk','ug':'uig','ky':'kir','mn':'khk','ps':'pbu','se':'sme','kab':'kab','crh':'crh','am':'amh','dz':'dzo','om':'gax','sa':'san','pcm':'pcm','ace':'ace','bcl':'bcl','gug':'gug','fuv':'fuv'}
P=lambda c: mp.get(c) or extra.get(c,c)
ours={o[7] for o in out}
lib={l.iso for l in LANGUAGES if l.py3langid}
lack={l.iso for l in LANGUAGES if not l.py3langid and l.udhr}
libiso=set(P(l) for l in set(mp)|set(extra))
def show(name,f):
    print(name)
    agg=collections.defaultdict(lambda:[0,0,0])
    for o in out:
        g='neg_known_to_lib' if o[0].startswith('neg') and o[1] in libiso else 'listed_lack' if o[0]=='listed' and o[1] in lack else 'listed_lib' if o[0]=='listed' else o[0]
        r=f(o); a=agg[g]
        a[0]+=1; a[1]+= r==o[1]; a[2]+= r=='unknown'
    for k,v in agg.items(): print('  ',k,v[0],'right',round(v[1]/v[0],3),'unknown',round(v[2]/v[0],3),'wrong',round(1-(v[1]+v[2])/v[0],3))
if __name__=='__main__':
    show('lib',lambda o:P(o[3]))
    show('ours',lambda o:'unknown' if o[7]=='other' else o[7])
    def rule(tl,to,ta):
        def f(o):
            p=P(o[3]); q=o[7]
            if q in lack: return q if o[8]>=tl else 'unknown'
            if q=='other': return 'unknown' if o[8]>=to and p in ours else p
            if p==q: return p
            if p in ours: return 'unknown' if o[8]>=ta else p
            return p
        return f
    for a in ((.5,.5,9),(.5,.7,9),(.5,.5,.5),(.5,.3,.3)): show(f'rule {a}',rule(*a))
    print(collections.Counter((o[1],P(o[3]),o[7]) for o in out if o[0]=='listed' and o[1] in lib and P(o[3])!=o[1]).most_common(25))
    print(collections.Counter((o[0],o[1],P(o[3]),o[7]) for o in out if o[0] in('xcopa','mgsm') and P(o[3])!=o[1]).most_common(25))
    print(collections.Counter((P(o[3]),o[7]) for o in out if o[0]=='neg_test' and o[7]!='other').most_common(40))
    print(collections.Counter((o[1],P(o[3])) for o in out if o[0] in('xcopa','mgsm','c4') and o[7]=='other').most_common(40))
    print(collections.Counter(o[1] for o in out if o[0]=='listed' and o[7]=='other').most_common(40))
