"""Drawings of a compiled graph, as SVG and as mermaid text: layers by depth, the critical path marked."""

from __future__ import annotations

from html import escape

from tokencake_sglang.core.graph import CompiledGraph, Node
from tokencake_sglang.frontend.layout import Layout, lay_out

NODE_HEIGHT, LAYER_GAP, MARGIN = 42, 30, 24
TITLE_HEIGHT, LEGEND_HEIGHT = 34, 40
NAME_PX, NOTE_PX, PADDING = 7.3, 6.0, 24  # width of a character in the two sizes of type, and around them
FILL = {"llm": "#e3edfb", "tool": "#fdf0d5", "call": "#eadff7", "local": "#f1f1f1"}
LINE = {"llm": "#5b84c4", "tool": "#c99a3c", "call": "#8c68bd", "local": "#9a9a9a"}
CRITICAL, PLAIN, INK = "#d1344b", "#a4acb8", "#1f2430"
LEGEND = (("llm", "model call"), ("call", "model call, then a tool"), ("tool", "tool"), ("local", "no wait"))


def style_of(node: Node) -> str:
    """How a node is drawn: llm, call (the model writes a tool call first), tool, or local."""
    if node.kind == "llm":
        return "llm"
    return "call" if node.calls_model else "local" if node.tool_kind == "local" else "tool"


def note_of(node: Node) -> str:
    """The second line of a node: what it generates, how long its tool takes, how often it runs."""
    parts = [f"{node.tokens} tokens"] if node.tokens else []
    if node.seconds:
        parts.append(f"{node.seconds:g} s")
    if node.kind == "tool" and node.tool_kind and style_of(node) != "local" and node.tool_kind != node.name:
        parts.append(node.tool_kind)
    if node.count != 1:
        parts.append(f"× {node.count:g}")
    return " · ".join(parts)


def svg(compiled: CompiledGraph, title: str) -> str:
    """The drawing as one SVG document."""
    nodes = {node.name: node for node in compiled.graph.nodes}
    widths = {name: _width(node) for name, node in nodes.items()}
    layout = lay_out({name: facts.depth_longest for name, facts in compiled.facts.items()},
                     compiled.graph.edges, widths, MARGIN)
    top = MARGIN + TITLE_HEIGHT
    width = max(layout.width, 560, round(len(title) * 9 + 2 * MARGIN))
    height = top + layout.layers * (NODE_HEIGHT + LAYER_GAP) - LAYER_GAP + LEGEND_HEIGHT + MARGIN
    shift = (width - layout.width) // 2
    facts = f"{len(nodes)} nodes, {len(compiled.graph.edges)} edges; critical path {_shown(compiled.expected_s)} s"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" text-anchor="middle">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{width // 2}" y="{MARGIN + 4}" font-size="16" font-weight="bold" fill="{INK}">'
        f'{escape(title)}</text>',
        f'<text x="{width // 2}" y="{MARGIN + 22}" font-size="11" fill="#69707d">{facts}</text>']
    on_path = set(zip(compiled.critical_path, compiled.critical_path[1:], strict=False))
    for edge in sorted(compiled.graph.edges, key=lambda e: e in on_path):
        lines.append(_edge(layout, edge, edge in on_path, shift, top))
    for name, node in nodes.items():
        lines += _box(node, layout.x[name] + shift, _y(layout.layer[name], top), widths[name],
                      compiled.facts[name].critical)
    lines += _legend({style_of(node) for node in nodes.values()}, width // 2, height - MARGIN - LEGEND_HEIGHT // 2 + 8)
    return "\n".join([*lines, "</svg>"]) + "\n"


def mermaid(compiled: CompiledGraph, title: str) -> str:
    """The drawing as a mermaid flowchart, which many Markdown viewers render."""
    ids = {node.name: f"n{number}" for number, node in enumerate(compiled.graph.nodes)}
    lines = ["---", f"title: {_quoted(title)}", "---", "flowchart TD"]
    for node in compiled.graph.nodes:
        note = note_of(node)
        label = _quoted(node.name + (f"<br/>{note}" if note else ""))
        left, right = {"llm": ("(", ")"), "local": ("([", "])")}.get(style_of(node), ("[", "]"))
        lines.append(f"    {ids[node.name]}{left}{label}{right}:::{style_of(node)}")
    lines += [f"    {ids[a]} --> {ids[b]}" for a, b in compiled.graph.edges]
    lines += [f"    classDef {style} fill:{FILL[style]},stroke:{LINE[style]},color:{INK}" for style in FILL]
    lines.append(f"    classDef critical stroke:{CRITICAL},stroke-width:3px")
    lines.append(f"    class {','.join(ids[name] for name in compiled.critical_path)} critical")
    on_path = set(zip(compiled.critical_path, compiled.critical_path[1:], strict=False))
    marked = [str(number) for number, edge in enumerate(compiled.graph.edges) if edge in on_path]
    if marked:
        lines.append(f"    linkStyle {','.join(marked)} stroke:{CRITICAL},stroke-width:3px")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "#quot;").replace("\n", " ") + '"'


def _shown(seconds: float) -> str:
    return f"{round(seconds, 1):g}"


def _width(node: Node) -> int:
    return max(64, round(max(len(node.name) * NAME_PX, len(note_of(node)) * NOTE_PX)) + PADDING)


def _y(layer: int, top: int) -> int:
    return top + layer * (NODE_HEIGHT + LAYER_GAP)


def _edge(layout: Layout, edge: tuple[str, str], critical: bool, shift: int, top: int) -> str:
    """A curve from the lower side of one node to the upper side of the other, by the gaps between the layers' nodes."""
    points = [(x + shift, _y(layer, top)) for x, layer in layout.routes[edge]]
    x, y = points[0]
    path = [f"M{x} {y + NODE_HEIGHT}"]
    for number, (to_x, to_y) in enumerate(points[1:], 2):
        from_y = points[number - 2][1] + NODE_HEIGHT
        middle = (from_y + to_y) // 2
        is_last = number == len(points)
        path.append(f"C{x} {middle} {to_x} {middle} {to_x} {to_y - (5 if is_last else 0)}")
        if not is_last:
            path.append(f"L{to_x} {to_y + NODE_HEIGHT}")
        x = to_x
    tip_x, tip_y = points[-1]
    colour, width = (CRITICAL, 2.6) if critical else (PLAIN, 1.4)
    return (f'<path d="{" ".join(path)}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
            f'<path d="M{tip_x - 4} {tip_y - 7} L{tip_x} {tip_y} L{tip_x + 4} {tip_y - 7} Z" fill="{colour}"/>')


def _box(node: Node, x: int, y: int, width: int, critical: bool) -> list[str]:
    style, note = style_of(node), note_of(node)
    line, thickness = (CRITICAL, 2.6) if critical else (LINE[style], 1.2)
    radius = {"llm": 10, "local": NODE_HEIGHT // 2}.get(style, 3)
    first = y + (18 if note else NODE_HEIGHT // 2 + 4)
    lines = [
        f'<rect x="{x - width // 2}" y="{y}" width="{width}" height="{NODE_HEIGHT}" rx="{radius}" '
        f'fill="{FILL[style]}" stroke="{line}" stroke-width="{thickness}"/>',
        f'<text x="{x}" y="{first}" font-size="12.5" fill="{INK}">{escape(node.name)}</text>']
    if note:
        lines.append(f'<text x="{x}" y="{y + 33}" font-size="10.5" fill="#5d6470">{escape(note)}</text>')
    return lines


def _legend(used: set[str], middle: int, y: int) -> list[str]:
    entries = [(style, text) for style, text in LEGEND if style in used] + [("critical", "critical path")]
    widths = [len(text) * NOTE_PX + 34 for _, text in entries]
    x, lines = middle - sum(widths) / 2, []
    for (style, text), width in zip(entries, widths, strict=True):
        left = round(x)
        if style == "critical":
            lines.append(f'<path d="M{left} {y} L{left + 16} {y}" stroke="{CRITICAL}" stroke-width="2.6"/>')
        else:
            lines.append(f'<rect x="{left}" y="{y - 6}" width="16" height="12" rx="3" fill="{FILL[style]}" '
                         f'stroke="{LINE[style]}"/>')
        lines.append(f'<text x="{left + 22}" y="{y + 4}" font-size="10.5" text-anchor="start" fill="#5d6470">'
                     f'{text}</text>')
        x += width
    return lines
