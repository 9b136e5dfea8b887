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

    def __init__(self, root: etree._Element, short: int = SHORT) -> None:
        self.nodes = nodes = list(root.iter("*"))
        index = {node: i for i, node in enumerate(nodes)}
        self.parent = parent = [index.get(node.getparent(), 0) for node in nodes]
        self.tags = tags = [node.tag for node in nodes]
        self._measure(nodes, tags, parent, short)

    def _measure(self, nodes: list[etree._Element], tags: list[str], parent: list[int], short: int) -> None:
        count = len(nodes)
        link, flow, linked = [0] * count, [0] * count, [0] * count
        text = [len(own.strip()) if (own := node.text) else 0 for node in nodes]
        tails = [len(tail.strip()) if (tail := node.tail) else 0 for node in nodes]
        prose = [0.0] * count
        self.cluster = cluster = [0.0] * count
        self.end = end = list(range(1, count + 1))
        own = text.copy()
        for i in range(count - 1, 0, -1):
            tag, up, chars = tags[i], parent[i], text[i]
            loose = flow[i] + own[i]  # characters that flow in no block of their own
            if tag == "a":
                link[i], linked[i] = chars, loose
            if end[i] > end[up]:
                end[up] = end[i]
            if tail := tails[i]:
                flow[up] += tail
                text[up] += tail
            if chars:
                text[up] += chars
                link[up] += link[i]
                if tag in INLINE:
                    flow[up] += loose
                    linked[up] += linked[i]
                elif loose:
                    free = weight(loose, linked[i], short)
                    prose[i] += free
                    cluster[up if tag in PARAGRAPH else i] += free
                prose[up] += prose[i]
        if loose := flow[0] + own[0]:
            prose[0] += weight(loose, linked[0], short)
        self.text, self.link, self.prose = text, link, prose


def weight(chars: int, linked: int, short: int = SHORT) -> float:
    """Weight of a block: its characters, less for short ones, and the less the more of them are links."""
    free = 1 - linked / chars if linked < chars else 0.0
    return chars * free * free * (chars / short if chars < short else 1.0)
