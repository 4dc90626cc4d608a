"""The colours and fonts of a picture, light and dark.

Owns: the style sheet. Every text has a contrast of at least 4.5 to what it stands on, every line that matters 3.
"""

from __future__ import annotations

LIGHT = {
    "ground": "#ffffff", "section": "#f6f7f9", "edge": "#c9ced6", "frame": "#7a8392", "body": "#ffffff",
    "text": "#1c2330", "muted": "#565f6f", "wire": "#6b7484", "focus": "#0b57d0",
    "do": "#0b57d0", "wait": "#9a5b00", "sleep": "#7038b8", "call": "#0b7067", "leave": "#565f6f",
    "marked": "#b3261e", "box": "#ffffff", "parallel": "#eef3fc", "loop": "#f5f0fb",
}  # fmt: skip

DARK = {
    "ground": "#12151b", "section": "#1a1e26", "edge": "#39414f", "frame": "#717b8d", "body": "#1a1e26",
    "text": "#e8ebf0", "muted": "#a7b0bf", "wire": "#8b95a6", "focus": "#8ab4f8",
    "do": "#8ab4f8", "wait": "#f2b45c", "sleep": "#c9a6f5", "call": "#6fd0c4", "leave": "#a7b0bf",
    "marked": "#ff8a80", "box": "#222732", "parallel": "#1b2638", "loop": "#251f33",
}  # fmt: skip


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


STYLE = (
    f".orchestrator-diagram{{{_variables(LIGHT)}color-scheme:light dark;background:var(--ground)}}"
    f"@media (prefers-color-scheme:dark){{.orchestrator-diagram{{{_variables(DARK)}}}}}"
    """
.orchestrator-diagram text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:11px;fill:var(--text)}
.orchestrator-diagram .large{font-size:13px}
.orchestrator-diagram .strong{font-weight:600}
.orchestrator-diagram .muted{fill:var(--muted)}
.orchestrator-diagram .section>rect{fill:var(--section);stroke:var(--edge)}
.orchestrator-diagram .frame>rect{fill:var(--body);stroke:var(--frame);fill-opacity:.55}
.orchestrator-diagram .parallel>rect{fill:var(--parallel)}
.orchestrator-diagram .loop>rect{fill:var(--loop)}
.orchestrator-diagram .frame.marked>rect{stroke:var(--marked);stroke-dasharray:5 3}
.orchestrator-diagram .frame.marked>.head text{fill:var(--marked)}
.orchestrator-diagram .head{cursor:pointer}
.orchestrator-diagram .head rect{fill:transparent}
.orchestrator-diagram .head:hover rect{fill:var(--edge);fill-opacity:.45}
.orchestrator-diagram .head path{fill:var(--muted)}
.orchestrator-diagram .head:focus,.orchestrator-diagram a:focus{outline:none}
.orchestrator-diagram .head:focus-visible rect,.orchestrator-diagram a:focus-visible rect{stroke:var(--focus);
stroke-width:2.5}
.orchestrator-diagram .collapsed>.body{display:none}
.orchestrator-diagram .collapsed>.head path{transform:rotate(-90deg)}
.orchestrator-diagram .leaf rect{fill:var(--box);stroke:var(--kind);stroke-width:1.5}
.orchestrator-diagram .leaf .kind{fill:var(--kind)}
.orchestrator-diagram .step_do{--kind:var(--do)}
.orchestrator-diagram .step_invoke,.orchestrator-diagram .function_call{--kind:var(--call)}
.orchestrator-diagram .step_sleep,.orchestrator-diagram .step_sleep_until{--kind:var(--sleep)}
.orchestrator-diagram .step_wait_for_event{--kind:var(--wait)}
.orchestrator-diagram .break{--kind:var(--leave)}
.orchestrator-diagram .break rect{stroke-dasharray:4 3}
.orchestrator-diagram .block{--kind:var(--frame)}
.orchestrator-diagram .leaf.marked{--kind:var(--marked)}
.orchestrator-diagram .leaf.marked rect{stroke-dasharray:5 3}
.orchestrator-diagram .split{stroke:var(--edge)}
.orchestrator-diagram .wire{fill:none;stroke:var(--wire);stroke-width:1.4}
.orchestrator-diagram .tip{fill:var(--wire)}
"""
)
