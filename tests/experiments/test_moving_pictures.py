"""Every moving picture of the documents is made by a command that ships."""

import re
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def test_every_gif_of_the_documents_is_shown_with_its_command(call, tiny_run, tmp_path):
    texts = [path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))]
    commands = {
        words.group(1): words.group(0)
        for text in texts
        for words in re.finditer(r"flowfactor explore-latent (?:.|\\\n)*?--out (\S+\.gif)", text)
    }
    gifs = {path.name for path in ROOT.glob("docs/**/*.gif")}
    assert gifs
    assert gifs <= set(commands)
    for name in gifs:
        words = commands[name].replace("\\\n", " ").split()[1:]
        words[1], words[-1] = str(tiny_run), str(tmp_path / name)
        numbers = iter(range(9))  # the tiny run has fewer samples
        words = [next(numbers) if word.isdecimal() else word for word in words]
        code, output = call(*words)
        assert code == 0, output
        picture = Image.open(tmp_path / name)
        assert picture.n_frames > 10
        assert picture.info["loop"] == 0
