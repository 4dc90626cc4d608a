"""What makes the frames of a picture collapse, and a trace move: a script that is part of the SVG, or a page's file.

Owns: the script. It does the sums of ``layout`` again, from the same numbers. A picture in which no script runs shows
everything. As a file of a page it looks after every picture there, and of one that comes later with
``orchestratorDiagram.attach(svg)``. ``orchestratorDiagram.apply(svg, trace)`` lays the JSON of a trace over a picture.
"""

from __future__ import annotations

from orchestrator.diagrams.render import layout

NUMBERS = ("GAP_X", "GAP_Y", "PAD", "HEAD", "HEADING", "SECTION_GAP", "MAX_WIDTH", "MARGIN", "LINE", "SMALL")

SCRIPT = (
    "(()=>{const "
    + ",".join(f"{name}={getattr(layout, name)}" for name in NUMBERS)
    + f",BADGE={layout.BADGE}"
    + """;
const all=(el,cls)=>[...el.children].filter(c=>c.classList.contains(cls));
const num=(el,name)=>parseFloat(el.dataset[name]);
const move=(el,x,y)=>el.setAttribute('transform',`translate(${x},${y})`);
const set=(el,attrs)=>{for(const k in attrs)el.setAttribute(k,attrs[k])};
function column(el){
  const rows=all(el,'row').map(r=>all(r,'box').map(b=>({el:b,...box(b)})));
  const wide=rows.map(r=>r.reduce((s,b)=>s+b.w,0)+GAP_X*(r.length-1));
  const w=Math.max(...wide,num(el,'least'));
  let y=el.dataset.heading?HEADING:0;
  rows.forEach((r,i)=>{
    let x=(w-wide[i])/2;
    r.forEach(b=>{b.x=x;b.y=y;move(b.el,x,y);x+=b.w+GAP_X});
    y+=Math.max(...r.map(b=>b.h))+GAP_Y;
  });
  const lines=all(el,'wire'),tips=all(el,'tip');
  for(let i=0;i+1<rows.length;i++){
    const tied=rows[i].filter(b=>!b.el.dataset.loose);
    const up=(tied.length?tied:rows[i]).map(b=>[b.x+b.w/2,b.y+b.h]),down=rows[i+1].map(b=>[b.x+b.w/2,b.y]);
    const bus=down[0][1]-GAP_Y/2,xs=[...up,...down].map(p=>p[0]);
    lines[i].setAttribute('d',up.map(p=>`M${p[0]},${p[1]}V${bus}`).join('')+`M${Math.min(...xs)},${bus}H${Math.max(...xs)}`
      +down.map(p=>`M${p[0]},${bus}V${p[1]-5}`).join(''));
    tips[i].setAttribute('d',down.map(p=>`M${p[0]-4},${p[1]-7}h8l-4,6z`).join(''));
  }
  all(el,'heading').forEach(t=>t.setAttribute('x',w/2));
  return {w,h:rows.length?y-GAP_Y:y+LINE};
}
function box(el){
  if(el.classList.contains('leaf'))return {w:num(el,'w'),h:num(el,'h')};
  const body=all(el,'body')[0],head=all(el,'head')[0],least=num(el,'least');
  let w=least,h=HEAD;
  if(!el.classList.contains('collapsed')){
    const cols=all(body,'column').map(c=>({el:c,...column(c)}));
    const across=cols.reduce((s,c)=>s+c.w,0)+GAP_X*(cols.length-1);
    w=Math.max(across+2*PAD,least);h=HEAD+Math.max(0,...cols.map(c=>c.h))+2*PAD;
    let x=(w-across)/2;
    const splits=all(body,'split');
    cols.forEach((c,i)=>{move(c.el,x,HEAD+PAD);x+=c.w+GAP_X;
      if(splits[i])set(splits[i],{x1:x-GAP_X/2,x2:x-GAP_X/2,y1:HEAD+PAD/2,y2:h-PAD/2})});
  }
  set(all(el,'outline')[0],{width:w,height:h});
  set(head.querySelector('rect'),{width:w});
  set(head.querySelector('.count'),{x:w-PAD});
  return {w,h};
}
function draw(svg){
  let x=MARGIN,y=MARGIN,bottom=y,right=y;
  all(svg,'section').forEach(el=>{
    const c=all(el,'column')[0],s=column(c),w=Math.max(s.w,num(el,'least'))+2*PAD,h=s.h+HEAD+2*PAD;
    if(x>MARGIN&&x+w>MAX_WIDTH){x=MARGIN;y=bottom+SECTION_GAP}
    move(el,x,y);move(c,(w-s.w)/2,HEAD+PAD);set(all(el,'outline')[0],{width:w,height:h});
    x+=w+SECTION_GAP;bottom=Math.max(bottom,y+h);right=Math.max(right,x-SECTION_GAP);
  });
  set(svg,{viewBox:`0 0 ${right+MARGIN} ${bottom+MARGIN}`,width:right+MARGIN,height:bottom+MARGIN});
}
function toggle(svg,head){
  const shut=head.parentNode.classList.toggle('collapsed');
  head.setAttribute('aria-expanded',String(!shut));
  draw(svg);
}
function attach(svg){
  if(svg.dataset.attached)return;
  svg.dataset.attached='1';
  svg.addEventListener('click',e=>{const h=e.target.closest('.head');if(h)toggle(svg,h)});
  svg.addEventListener('keydown',e=>{const h=e.target.closest('.head');
    if(h&&(e.key==='Enter'||e.key===' ')){e.preventDefault();toggle(svg,h)}});
}
const plain=state=>state.replaceAll('_',' ');
const standing=n=>Object.keys(n.counts).length<2?plain(n.state)+(n.total<2?'':` ${n.total} times`):
  n.total+' times: '+Object.entries(n.counts).map(([s,k])=>k+' '+plain(s)).join(', ');
const amount=n=>Object.keys(n.counts).length<2?String(n.total):(n.counts.done||0)+'/'+n.total;
function badge(el,n){
  const said=amount(n),w=BADGE+said.length*SMALL,text=el.querySelector('text');
  el.dataset.total=n.total;
  set(el.querySelector('rect'),{x:-w,width:w});
  set(text,{x:-w/2});
  text.textContent=said;
}
function apply(svg,trace){
  svg.dataset.traced='1';
  const entered=new Set(trace.entered),none={total:0,counts:{}};
  svg.querySelectorAll('[data-part]').forEach(el=>{
    if(entered.has(el.dataset.part))el.dataset.entered='1';else delete el.dataset.entered;
  });
  svg.querySelectorAll('[data-state]').forEach(el=>{
    const id=el.dataset.node,n=trace.nodes[id],end=id==='start'||id==='end';
    const state=end?trace[id]:n?n.state:'pending';
    if(el.dataset.state!==state)el.dataset.state=state;
    const says=el.dataset.label+': '+(n?standing(n):plain(state)),head=el.querySelector(':scope > .head');
    const spoken=head||el.querySelector(':scope > a')||el,title=(head||el).querySelector(':scope > title');
    if(spoken.getAttribute('aria-label')!==says){spoken.setAttribute('aria-label',says);title.textContent=says}
    const b=all(el,'badge')[0];
    if(b)badge(b,n||none);
  });
}
window.orchestratorDiagram={attach,apply};
const here=document.currentScript,own=here?here.closest('svg'):document.documentElement;
const wake=()=>document.querySelectorAll('svg.orchestrator-diagram').forEach(attach);
if(own)attach(own);
else if(document.readyState==='loading')document.addEventListener('DOMContentLoaded',wake);
else wake();
})();"""
)
