"""Weights of elements: characters, links and prose below each, in one pass over the tree.

A block counts by its length and by how little of it is links; the text of inline elements belongs to the block that
they stand in. The idea is that of Kohlschütter et al., WSDM 2010; the weights are our own.
"""

from lxml import etree

from pipelines.extract_names import INLINE, PARAGRAPH

SHORT = 80  # characters; a shorter block counts less: menus and labels are short


class Weights:
    """Elements of a tree in document order with their parents, text and links.

    Attributes:
        nodes: elements, document order.
        parent: index of each element's parent; 0 for the first.
        end: index behind the element's last descendant.
        text: characters below each element.
        link: those of them inside links.
        prose: weight of prose below each element.
        cluster: weight of the paragraphs right below each element, or of its own flowing text.
    """

    def __init__(self, root: etree._Element) -> None:
        self.nodes = nodes = list(root.iter("*"))
        index = {node: i for i, node in enumerate(nodes)}
        count = len(nodes)
        self.parent = parent = [0] * count
        for i in range(1, count):
            parent[i] = index[nodes[i].getparent()]
        self.tags = tags = [node.tag for node in nodes]
        self._measure(nodes, tags, parent)

    def _measure(self, nodes: list[etree._Element], tags: list[str], parent: list[int]) -> None:
        count = len(nodes)
        text, link, flow, linked = [0] * count, [0] * count, [0] * count, [0] * count
        prose = [0.0] * count
        self.cluster = cluster = [0.0] * count
        self.end = end = list(range(1, count + 1))
        for i in range(count - 1, -1, -1):
            node, tag, up = nodes[i], tags[i], parent[i]
            if (own := node.text) and not own.isspace():
                own = len(own.strip())
                text[i] += own
                flow[i] += own
            if tag == "a":
                link[i] = text[i]
                linked[i] = flow[i]
            if i == 0:
                break
            if (tail := node.tail) and not tail.isspace():
                tail = len(tail.strip())
                text[up] += tail
                flow[up] += tail
            text[up] += text[i]
            link[up] += link[i]
            if end[i] > end[up]:
                end[up] = end[i]
            if tag in INLINE:
                flow[up] += flow[i]
                linked[up] += linked[i]
            elif flow[i]:
                own = weight(flow[i], linked[i])
                prose[i] += own
                cluster[up if tag in PARAGRAPH else i] += own
            prose[up] += prose[i]
        if flow[0]:
            prose[0] += weight(flow[0], linked[0])
        self.text, self.link, self.prose = text, link, prose


def weight(chars: int, linked: int) -> float:
    """Weight of a block: its characters, less for short ones, and the less the more of them are links."""
    free = 1 - linked / chars if linked < chars else 0.0
    return chars * free * free * (chars / SHORT if chars < SHORT else 1.0)
