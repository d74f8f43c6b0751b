import json,gzip,time
from pretrain.data.labels import *
from pretrain.data.document import document, write_shards
from pretrain.data.annotate import Annotator, summarise, table
from pathlib import Path
rows=[json.loads(l) for l in gzip.open('/work/shared/data/pretrain/c4_demo.jsonl.gz','rt')][:60]
docs=[document('c4',str(i),f'c4:{i}',r['text']) for i,r in enumerate(rows)]
docs+= [document('x',str(i),f'x:{i}',t) for i,t in enumerate(['','a','人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。','Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.'])]
ls=[identified(bind(n,s)) for n,s in {'language':{},'length':{},'quality':{},'terms':{},'from_source':{'values':{'c4':'web','x':'other'}}}.items()]
print([l.identity for l in ls])
t=time.time(); out=Annotator(ls)(docs); print(time.time()-t)
p=Path('/tmp/h/me/labels/smoke'); 
write_shards(out,p,30)
s=summarise(sorted(p.glob('*.parquet')))
print('\n'.join(table({'labels':s})))
for d in out[-4:]: print([(l['name'],l['value'],l['score']) for l in d['labels']])
