"""Pictures of a graph: SVG, Mermaid, and text for a terminal. All of them take the graph's JSON."""
