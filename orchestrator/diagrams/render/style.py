"""The colours and fonts of a picture, light and dark, and how each state of a node looks.

Owns: the style sheet. Every text has a contrast of at least 4.5 to what it stands on, every line that matters 3. A
state is told by its mark as well, not by colour alone.

A page that has a theme of its own sets ``data-theme="light"`` or ``"dark"`` on the picture.
"""

from __future__ import annotations

LIGHT = {
    "ground": "#ffffff", "section": "#f6f7f9", "edge": "#c9ced6", "frame": "#7a8392", "body": "#ffffff",
    "text": "#1c2330", "muted": "#565f6f", "wire": "#6b7484", "focus": "#0b57d0",
    "do": "#0b57d0", "wait": "#9a5b00", "sleep": "#7038b8", "call": "#0b7067", "leave": "#565f6f",
    "marked": "#b3261e", "box": "#ffffff", "parallel": "#eef3fc", "loop": "#f5f0fb",
    "running": "#0b57d0", "retrying": "#9a5b00", "waiting": "#7038b8", "done": "#146c2e", "failed": "#b3261e",
    "cancelled": "#565f6f", "compensated": "#0b7067", "compensation_failed": "#9c1f6d",
    "running-tint": "#e8f0fe", "retrying-tint": "#fdf1df", "waiting-tint": "#f3ebfc", "done-tint": "#e6f4ea",
    "failed-tint": "#fce8e6", "cancelled-tint": "#eef0f3", "compensated-tint": "#e0f3f1",
    "compensation_failed-tint": "#fbe7f3",
}  # fmt: skip

DARK = {
    "ground": "#12151b", "section": "#1a1e26", "edge": "#39414f", "frame": "#717b8d", "body": "#1a1e26",
    "text": "#e8ebf0", "muted": "#a7b0bf", "wire": "#8b95a6", "focus": "#8ab4f8",
    "do": "#8ab4f8", "wait": "#f2b45c", "sleep": "#c9a6f5", "call": "#6fd0c4", "leave": "#a7b0bf",
    "marked": "#ff8a80", "box": "#222732", "parallel": "#1b2638", "loop": "#251f33",
    "running": "#8ab4f8", "retrying": "#f2b45c", "waiting": "#c9a6f5", "done": "#7fd58d", "failed": "#ff8a80",
    "cancelled": "#a7b0bf", "compensated": "#6fd0c4", "compensation_failed": "#f59ad0",
    "running-tint": "#1c2a44", "retrying-tint": "#3a2c14", "waiting-tint": "#2e2343", "done-tint": "#173324",
    "failed-tint": "#431f1d", "cancelled-tint": "#2a2f39", "compensated-tint": "#12353a",
    "compensation_failed-tint": "#411a35",
}  # fmt: skip

LOOKS = {
    "running": ("running", "play"),
    "retrying": ("retrying", "turn"),
    "compensating": ("compensated", "back"),
    "waiting": ("waiting", "dots"),
    "compensation_failed": ("compensation_failed", "no"),
    "failed": ("failed", "no"),
    "compensated": ("compensated", "back"),
    "done": ("done", "ok"),
    "cancelled": ("cancelled", "bar"),
}
"""By state: its colour, and what stands in its mark. A pending node looks like one in a picture without a trace."""


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


def _states() -> str:
    lines = []
    for state, (colour, glyph) in LOOKS.items():
        chosen = f'.orchestrator-diagram [data-state="{state}"]'
        lines.append(f"{chosen}{{--state:var(--{colour});--tint:var(--{colour}-tint)}}")
        lines.append(f"{chosen}>.mark,{chosen}>.mark .{glyph}{{display:inline}}")
    return "\n".join(lines)


_ANY = '.orchestrator-diagram [data-state]:not([data-state="pending"])'
_LIVE = (
    '.orchestrator-diagram :is([data-state="running"],[data-state="retrying"],[data-state="compensating"])'
)

STYLE = (
    f".orchestrator-diagram{{{_variables(LIGHT)}color-scheme:light dark;background:var(--ground)}}"
    f"@media (prefers-color-scheme:dark)"
    f'{{.orchestrator-diagram:not([data-theme="light"]){{{_variables(DARK)}}}}}'
    f'.orchestrator-diagram[data-theme="dark"]{{{_variables(DARK)}color-scheme:dark}}'
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
.orchestrator-diagram .head,.orchestrator-diagram .leaf[role="button"]{cursor:pointer}
.orchestrator-diagram .head rect{fill:transparent}
.orchestrator-diagram .head:hover rect{fill:var(--edge);fill-opacity:.45}
.orchestrator-diagram .head path{fill:var(--muted)}
.orchestrator-diagram :is(.head,a,.leaf):focus{outline:none}
.orchestrator-diagram .collapsed>.body{display:none}
.orchestrator-diagram .collapsed>.head path{transform:rotate(-90deg)}
.orchestrator-diagram .leaf .face{fill:var(--box);stroke:var(--kind);stroke-width:1.5}
.orchestrator-diagram .leaf .kind{fill:var(--kind)}
.orchestrator-diagram .step_do{--kind:var(--do)}
.orchestrator-diagram .step_invoke,.orchestrator-diagram .function_call{--kind:var(--call)}
.orchestrator-diagram .step_sleep,.orchestrator-diagram .step_sleep_until{--kind:var(--sleep)}
.orchestrator-diagram .step_wait_for_event{--kind:var(--wait)}
.orchestrator-diagram .break,.orchestrator-diagram .start,.orchestrator-diagram .end{--kind:var(--leave)}
.orchestrator-diagram .break .face{stroke-dasharray:4 3}
.orchestrator-diagram .block{--kind:var(--frame)}
.orchestrator-diagram .leaf.marked{--kind:var(--marked)}
.orchestrator-diagram .leaf.marked .face{stroke-dasharray:5 3}
.orchestrator-diagram .undo{fill:none;stroke:var(--muted);stroke-width:1.5;stroke-linecap:round;
stroke-linejoin:round}
.orchestrator-diagram .split{stroke:var(--edge)}
.orchestrator-diagram .wire{fill:none;stroke:var(--wire);stroke-width:1.4}
.orchestrator-diagram .tip{fill:var(--wire)}
.orchestrator-diagram .mark,.orchestrator-diagram .mark path{display:none}
.orchestrator-diagram .mark circle{fill:var(--state);stroke:var(--ground)}
.orchestrator-diagram .mark path{fill:none;stroke:var(--ground);stroke-width:1.8;
stroke-linecap:round;stroke-linejoin:round}
.orchestrator-diagram .mark .play{fill:var(--ground);stroke-width:1}
.orchestrator-diagram .mark .dots{stroke-width:2.4}
.orchestrator-diagram .badge rect{fill:var(--state,var(--muted));stroke:var(--ground)}
.orchestrator-diagram .badge text{fill:var(--ground);font-weight:600}
.orchestrator-diagram .badge:is([data-total="0"],[data-total="1"]){display:none}
.orchestrator-diagram[data-traced] .leaf{--kind:var(--muted)}
.orchestrator-diagram[data-traced] [data-state="pending"]:is(.leaf) .face{stroke:var(--frame)}
.orchestrator-diagram[data-traced] [data-entered]>.heading{fill:var(--text);font-weight:600}
.orchestrator-diagram [data-state="pending"]{--state:var(--frame);--tint:var(--box)}
"""
    f"{_ANY}>.face,{_ANY}>a>.face{{fill:var(--tint);stroke:var(--state);stroke-width:2}}\n"
    '.orchestrator-diagram [data-state="compensating"]>:is(.face,.outline){stroke-dasharray:5 3}\n'
    f"{_ANY}>.outline{{stroke:var(--state);stroke-width:2}}\n"
    f"{_states()}\n"
    "@media (prefers-reduced-motion:no-preference)"
    f"{{{_LIVE}>.mark{{animation:orchestrator-live 1.6s ease-in-out infinite}}}}\n"
    "@keyframes orchestrator-live{50%{opacity:.45}}\n"
    ".orchestrator-diagram :is(.head:focus-visible rect,a:focus-visible .face,.leaf:focus-visible>.face)"
    "{stroke:var(--focus);stroke-width:3}\n"
)
