"""Small texts that the tests make themselves."""

import random

_WORDS = [
    *("law", "loss", "model", "token", "scale", "Größe", "données", "the", "of", "and", "a", "to"),
    *("compute", "data", "width", "depth", "batch", "rate", "budget", "fit", "x_1", "f(x)", "3.14"),
]


def documents(n: int, seed: int = 0, n_words: int = 120) -> list[str]:
    """n different documents of about `n_words` words on a few lines."""
    rng = random.Random(seed)
    texts = []
    for i in range(n):
        words = rng.choices(_WORDS, k=n_words)
        lines = [" ".join(words[k : k + 12]) for k in range(0, n_words, 12)]
        texts.append(f"# {seed}.{i}\n" + "\n    ".join(lines) + "\n")
    return texts


def document(name, n_lines=30, per_line=8):
    """Lines of words that no other document has, each with the document's name."""
    rng = random.Random(name)
    return "".join(
        f"{name}: "
        + " ".join(
            "".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(per_line)
        )
        + "\n"
        for _ in range(n_lines)
    )


_LETTERS = bytes(b"abcdefghijklmnop"[byte % 16] for byte in range(256))


def long_document(name, n_lines, per_line=8):
    """As `document`, drawn at once: for hundreds of lines a call a letter takes longer than a test."""
    rng, n = random.Random(name), n_lines * per_line
    letters = rng.randbytes(8 * n).translate(_LETTERS).decode()
    words = [letters[8 * i : 8 * i + 2 + byte % 7] for i, byte in enumerate(rng.randbytes(n))]
    lines = (" ".join(words[i : i + per_line]) for i in range(0, n, per_line))
    return "".join(f"{name}: {line}\n" for line in lines)


def write_text(path, texts):
    path.write_text("\n\x0c\n".join(texts), newline="")
    return str(path)
