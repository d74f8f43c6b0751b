import json,sys,time,collections
import numpy as np, scipy.sparse as sp
from sklearn.feature_extraction.text import HashingVectorizer
data=json.load(open('data.json'))
sys.path.insert(0,'.')
import importlib.util
spec=importlib.util.spec_from_file_location('L','/tmp/h/labels/pretrain/data/languages.py'); m=importlib.util.module_from_spec(spec); sys.modules['L']=m; spec.loader.exec_module(m)
codes={l.code for l in m.LANGUAGES}
HELD={3,8,13,18,23,28}
which=sys.argv[1]
rows=[d for d in data if which=='all' or d[0] in codes]
def pieces(t,n=200):
    words=t.split(' ') if ' ' in t else list(t)
    j=' ' if ' ' in t else ''
    out=[];cur=[];L=0
    for w in words:
        cur.append(w);L+=len(w)+1
        if L>=n: out.append(j.join(cur));cur=[];L=0
    if cur and (L>n//2 or not out): out.append(j.join(cur))
    return out
X,Y,T=[],[],[]
for c,k,t,u in rows:
    for p in pieces(t.replace('\n',' ')):
        X.append(p);Y.append(c);T.append(k in HELD)
Y=np.array(Y);T=np.array(T);
cl=sorted(set(Y));ix={c:i for i,c in enumerate(cl)};y=np.array([ix[c] for c in Y])
t0=time.time()
v=HashingVectorizer(analyzer='char_wb',ngram_range=(1,4),n_features=2**int(sys.argv[2]),alternate_sign=False,norm=None)
M=v.transform(X); print(M.shape,M.nnz,time.time()-t0)
tr,te=M[~T],M[T]; ytr,yte=y[~T],y[T]
def rep(p,name):
    acc=(p==yte).mean()
    from sklearn.metrics import f1_score
    print(name,'acc',acc,'macroF1',f1_score(yte,p,average='macro'), 'macro in119', f1_score(yte,p,average=None,labels=[ix[c] for c in cl if c in codes]).mean(), time.time()-t0)
# NB
C=len(cl)
ind=sp.csr_matrix((np.ones(len(ytr)),(ytr,np.arange(len(ytr)))),shape=(C,len(ytr)))
cnt=(ind@tr).toarray()
for a in (0.01,0.1,0.5):
    lp=np.log(cnt+a)-np.log(cnt.sum(1,keepdims=True)+a*cnt.shape[1])
    s=te@lp.T
    rep(s.argmax(1),f'NB {a}')
if len(sys.argv)>3:
    from sklearn.linear_model import SGDClassifier, LogisticRegression
    from sklearn.preprocessing import normalize
    f=lambda A: normalize(A.sign() if sys.argv[4]=='bin' else A.log1p())
    tn,en=f(tr),f(te)
    t0=time.time()
    if sys.argv[3]=='lr':
        k=LogisticRegression(C=float(sys.argv[5]),max_iter=100,tol=1e-3).fit(tn.astype(np.float32),ytr)
    else:
        k=SGDClassifier(loss='log_loss',alpha=float(sys.argv[5]),max_iter=20,tol=1e-3,random_state=0).fit(tn,ytr)
    P=k.decision_function(en); rep(P.argmax(1),sys.argv[3])
    e=collections.Counter((cl[a],cl[b]) for a,b in zip(yte,P.argmax(1)) if a!=b); print(e.most_common(30))
