import sys,json,time,gzip,collections,pickle,random
sys.path.insert(0,'/tmp/h/labels')
from pretrain.data.udhr import *; from pretrain.data.languages import LANGUAGES; from pretrain.data import ngrams; from pretrain.data.ngrams import Features, fit
from pretrain.data.scripts import script
import numpy as np
from rewards.language import identifier
arts,_=read_articles('/work/shared/data/udhr/udhr.jsonl.gz')
listed={l.iso for l in LANGUAGES}; listedtr={u for l in LANGUAGES for u in l.udhr}
HELD={3,8,13,18,23,28}
isos=sorted({a.language for a in arts if a.language not in listed and a.language not in('und','cmn')})
rnd=random.Random(0); rnd.shuffle(isos); neg_train=set(isos[::2]); neg_test=set(isos[1::2])
mode=sys.argv[1]
X,Y=[],[]
for a in arts:
    if a.number in HELD: continue
    if a.translation in listedtr: cls=a.language
    elif mode=='other' and a.language in neg_train: cls='other'
    else: continue
    ps=pieces(a.text,200)
    if cls=='other': ps=ps[:1] if a.number%3==0 else []
    for p in ps: X.append(p); Y.append(cls)
print(len(X),collections.Counter(Y)['other'],len(set(Y)))
t=time.time(); m=fit(X,Y,label='language',strength=float(sys.argv[2])); print('fit',time.time()-t)
T=[]
for a in arts:
    if a.number in HELD:
        kind='listed' if a.translation in listedtr else ('neg_test' if a.language in neg_test else 'neg_train' if a.language in neg_train else None)
        if kind: 
            for p in pieces(a.text,200): 
                if kind=='listed' or random.random()<.3: T.append((kind,a.language,p))
D='/work/shared/data/'
def rows(p): return [json.loads(l) for l in gzip.open(D+p,'rt')]
mp={l.py3langid:l.iso for l in LANGUAGES if l.py3langid}
r=rows('xcopa/xcopa.jsonl.gz'); print(r[0].keys())
by=collections.defaultdict(list)
for x in r: by[x.get('lang') or x.get('language')].append(x['premise']+' '+x['choice1']+' '+x['choice2'])
print({k:len(v) for k,v in by.items()})
for k,v in by.items():
    c=mp.get(k) or {'qu':'quy'}.get(k,k)
    for x in v[:100]: T.append(('xcopa',c,x))
r=rows('mgsm/mgsm.jsonl.gz'); print(r[0].keys())
for k in sorted({x.get('lang') or x.get('language') for x in r}):
    for x in [x for x in r if (x.get('lang') or x.get('language'))==k][:60]: T.append(('mgsm',mp.get(k,k),x['question']))
for x in rows('pretrain/c4_demo.jsonl.gz')[:300]: T.append(('c4','eng',x.get('text') or x.get('content')))
for x in rows('belebele_de/deu_Latn_400.jsonl.gz')[:100]: T.append(('belebele','deu',x.get('passage') or x.get('flores_passage') or list(x.values())[0]))
for x in rows('xquad/xquad_zh.jsonl.gz')[:100]: T.append(('xquad','zho',x['context']))
print(len(T))
t=time.time(); P=m.probabilities([x[2] for x in T]); print('ours',time.time()-t)
t=time.time(); ident=identifier()
out=[]
for (k,g,x),pr in zip(T,P):
    ranked=ident.rank(x[:2000]); (l1,s1),(l2,s2)=ranked[:2]
    o=np.argsort(-pr)[:2]
    out.append((k,g,len(x),l1,float(s1),l2,float(s2),m.classes[o[0]],float(pr[o[0]]),m.classes[o[1]],float(pr[o[1]]),script(x),x[:80]))
print('py3',time.time()-t)
json.dump(out,open(f'/tmp/h/me/labels/out_{mode}.json','w'))
