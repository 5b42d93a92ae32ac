"""What the site takes from elsewhere in the repository, so that nothing is written twice, and what its theme lacks.

The README becomes the front page, the other pages at the top stay pages, and each public module gets a
page made from its docstrings.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md"} | {
    name: name
    for name in ("CONTRIBUTING.md", "RESULTS.md", "PERFORMANCE.md", "PROMISES.md", "CHANGELOG.md")
}
#: Modules whose public names are documented, by heading.
MODULES = {
    "Python interface": ("lmscale.interface", "lmscale.figures", "lmscale.studies.results"),
    "Runs and experiments": ("lmscale.spec", "lmscale.sweep"),
    "Architectures": ("lmscale.architectures.base", "lmscale.architectures.parts"),
    "Optimizers": ("lmscale.optimizers",),
    "Counting": ("lmscale.flops",),
    "Laws": ("lmscale.laws",),
}


def on_files(files, config):
    """Adds the pages and the figures that they show."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for figure in sorted((ROOT / "experiments" / "figures").glob("*.png")):
        place = str(figure.relative_to(ROOT))
        files.append(File.generated(config, place, abs_src_path=str(figure)))
    for heading, modules in MODULES.items():
        content = f"# {heading}\n" + "".join(f"\n::: {module}\n" for module in modules)
        files.append(File.generated(config, f"api/{slug(heading)}.md", content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as they are in the repository, made those of the site."""
    depth = page.file.src_uri.count("/")
    if depth or page.file.src_uri not in PAGES.values():
        # Pages of docs/ lie one folder higher here.
        here = "../" * (depth + 1)
        return re.sub(rf"\]\({re.escape(here)}([A-Z]+\.md)", rf"]({'../' * depth}\1", markdown)
    markdown = markdown.replace("](docs/", "](")
    # Files that are no pages are named without a link.
    return re.sub(
        r"\[([^\]]+)\]\((?:lmscale|tests|experiments|launch)/[^)]*(?<!\.png)\)", r"`\1`", markdown
    )


#: What the theme's pages lack -> what they get in its place.
MENDS = {
    # Its switch of colours looks for these two, which are not there without its highlighting, and stops.
    "</head>": '<style id="hljs-light"></style><style id="hljs-dark"></style></head>',
    '<div class="navbar ': '<div role="banner" class="navbar ',
    # A keyboard scrolls only what it can reach.
    "<pre>": '<pre tabindex="0">',
    "<table>": '<table tabindex="0">',
    # A head without words names no column.
    "<th></th>": "<td></td>",
}


def on_post_page(output, page, config):
    """Pages that work without highlighting, by keyboard and for screen readers."""
    for lacking, mended in MENDS.items():
        output = output.replace(lacking, mended)
    return output


def slug(heading: str) -> str:
    return heading.lower().replace(" ", "-")
