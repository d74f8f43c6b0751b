import gzip,json,sys,collections,re,time,unicodedata
exec(open('proto.py').read().split("def headings")[0])
def number(s):
    ds=[str(unicodedata.decimal(c)) for c in s if c.isdecimal()]
    return int(''.join(ds)) if ds else None
def headings(lines):
    out=[];want=1
    for i,l in enumerate(lines):
        if len(l)<=40 and number(l)==want: out.append(i); want+=1
    if len(out)==30: return out,'n'
    short=[i for i,l in enumerate(lines) if len(l)<=40]
    for n in (4,3,2,1):
        for end in (False,True):
            c=collections.defaultdict(list)
            for i in short:
                s=lines[i].strip().casefold(); c[s[-n:] if end else s[:n]].append(i)
            for k,v in c.items():
                if len(v)==30: return v,'p'
    return None,''
code_of={u:l.code for l in m.LANGUAGES for u in l.udhr}
data=[];cnt=collections.Counter()
for r in rows:
    if r['code'] in('ckb','kmr'): continue
    lines=r['text'].split('\n'); h,how=headings(lines); cnt[how]+=1
    if not h:
        if r['code'] in code_of: print('none',r['code'])
        continue
    c=code_of.get(r['code']) or r['iso6393']
    for k,(a,b) in enumerate(zip(h,h[1:]+[len(lines)])):
        t='\n'.join(lines[a+1:b]).strip()
        data.append((c,k+1,t,r['code']))
print(cnt,len({d[0] for d in data}), len({d[0] for d in data}&set(code_of.values())))
json.dump(data,open('data.json','w'))
print([ (d[3],d[1],d[2][:50]) for d in data if d[1] in(30,) and d[3] in ('hat_popular','yue','kor','ban','ukr','lnc')])
print(collections.Counter(len(d[2])<20 for d in data), [ (d[3],d[1],d[2]) for d in data if len(d[2])<12][:20])
