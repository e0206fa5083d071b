"""How well was each language learned, and how much of that came from the others? Test perplexity, token efficiency, code-switching.

    python eval.py runs/a runs/b ...         # one table for all; give monolingual runs of several lengths too, for token efficiency
    python eval.py runs/a --sample           # one prompt, continued in each language, side by side

Perplexity is over the test split, the same text for every language, on the last positions of overlapping windows, so that every token that
is scored has context (paper: the last 128 of 512). Token efficiency: a power law is fitted to the monolingual runs, and asked how many tokens
a monolingual model would have needed for the same perplexity. TEff > 1: something crossed over from the other languages.
"""
import json
import math
import textwrap
from dataclasses import dataclass

import numpy as np
import torch

import clone
import data
import runs
from bpe import encoder
from cli import BadInput, Parser, progress, run, write_json
from data import file_sha256
from model import pick_device

B_RANGE = 0.01, 3.0  # of the law's exponent
SWITCH_TOKENS = 65536  # of test text, for the code-switch test
TUNED = "batch_size", "lr", "embedding_std"  # a monolingual run may have its own: it is what a monolingual model can reach that counts
NOT_OF_THE_RECIPE = {"ratio", "languages", "schedule", "cloned", "steps", "seed", "size", "dtype", "corpus", *TUNED}  # the corpus counts by its hash, not its name

# ---------------------------------------------------------------------------------------------------------------------
# Perplexity

@torch.no_grad()
def score(model, text, row, context, last_n, device, most=math.inf):
    """Loss in nats of the tokens of a text in one language, float64 [len(text)]: nan for the first context - last_n + 1, which have too
    little before them; every other token is scored once, with at least context - last_n tokens of context.

    row [V]: the language's ids, a row of clone.clone_table. most: score about that many tokens, spread evenly over the text; nan for the rest."""
    out = np.full(len(text), np.nan)
    starts = np.append(np.arange(0, len(text) - 1 - context, last_n), len(text) - 1 - context)  # the last window ends with the text
    if len(starts) * last_n > most:
        starts = starts[np.linspace(0, len(starts) - 1, max(1, int(most) // last_n)).astype(int)]
    for group in np.array_split(starts, math.ceil(len(starts) * context / 8192)):
        ids = torch.from_numpy(row[text[group[:, None] + np.arange(context + 1)]]).to(device)
        losses = model.token_losses(ids, last=last_n).cpu().double().numpy()
        out[group[:, None] + np.arange(context - last_n + 1, context + 1)] = losses
    return out


def mean_and_error(losses, text, eot):
    """Mean loss of the scored tokens, and its standard error over documents (None for a single one)."""
    document = np.cumsum(np.asarray(text) == eot) - (np.asarray(text) == eot)  # a document ends with its end-of-text
    kept = ~np.isnan(losses)
    n, total = np.bincount(document[kept]), np.bincount(document[kept], losses[kept])
    n, total = n[n > 0], total[n > 0]
    mean = total.sum() / n.sum()
    if len(n) < 2:
        return mean, None
    return mean, math.sqrt(((total - mean * n) ** 2).sum() * len(n) / (len(n) - 1)) / n.sum()


@torch.no_grad()
def code_switch(model, text, table, first, second, context, device):
    """Loss in nats of the second half of windows in one language, when the first half was in the same one, in another, or not there.

    Returns {"plain": ..., "within": ...} of {"same", "switched", "none", "gap", "worth"}; "within" takes the softmax over the second language's
    ids only, since the plain one mostly measures whether the model has noticed the switch. gap: switched - same, 0 where all of the context
    carries across; worth: none - same, what there is to carry."""
    half = context // 2
    base = clone.consecutive(text, context, min((len(text) - 1) // context, max(1, SWITCH_TOKENS // context)))
    rows = torch.from_numpy(np.unique(table[second])).to(device)
    result = {}
    for name, restrict in (("plain", None), ("within", rows)):
        result[name] = r = {}
        for case, prefix in (("same", second), ("switched", first), ("none", None)):
            ids = table[second][base[:, half:]]
            if prefix is not None:
                ids = np.concatenate([table[prefix][base[:, :half]], ids], axis=1)
            parts = torch.from_numpy(ids).to(device).split(max(1, 8192 // context))
            r[case] = torch.cat([model.token_losses(p, last=context - half, rows=restrict) for p in parts]).cpu().double().mean().item()
        r |= {"gap": r["switched"] - r["same"], "worth": r["none"] - r["same"]}
    return result


# ---------------------------------------------------------------------------------------------------------------------
# The monolingual scaling law: MLPE, MLTE, TEff

@dataclass
class Law:
    """1 / PPL(n) = c - a n**-b (paper: Metrics). `others`: the same fit to the points with noise as large as the residuals, for intervals."""
    a: float
    b: float
    c: float
    smallest: float
    largest: float
    others: list

    def ppl(self, n):
        """MLPE: the perplexity that a monolingual model reaches on n tokens; infinite where the law gives none."""
        inverse = self.c - self.a * n ** -self.b
        return 1 / inverse if inverse > 0 else math.inf

    def tokens(self, ppl):
        """MLTE: the tokens on which a monolingual model reaches a perplexity; infinite for one that it never reaches."""
        rest = self.c - 1 / ppl
        return math.exp(min(700, math.log(self.a / rest) / self.b)) if rest > 0 and self.a > 0 else math.inf

    def interval(self, ppl):
        """95 % interval of tokens(ppl), from what the fit's own residuals say; None where three points leave no residual."""
        if not self.others:
            return None
        return tuple(float(v) for v in np.quantile([law.tokens(ppl) for law in self.others], [0.025, 0.975], method="nearest"))

    def extrapolated(self, ppl):
        """Whether tokens(ppl) lies outside the fitted range by more than a factor of 2."""
        return not self.smallest / 2 <= self.tokens(ppl) <= self.largest * 2


def fit_law(tokens, ppl, n_bootstrap=400):
    """Fit the law to complete monolingual runs: tokens [n], ppl [n]. Raises BadInput for fewer than three different numbers of tokens, or
    perplexities that do not fall with tokens."""
    if len(set(tokens)) < 3:
        raise BadInput(f"a scaling law needs monolingual runs of 3 or more lengths, not {len(set(tokens))}: python train.py --languages=1 --steps=...")
    tokens, inverse = np.array(sorted(zip(tokens, 1 / np.asarray(ppl, float)))).T  # in whatever order they are given
    a, b, c = least_squares(tokens, inverse)
    if not a > 0:
        raise BadInput("no scaling law fits: the perplexity of the monolingual runs does not fall with their tokens")
    others, free = [], len(tokens) - 3
    if free > 0:
        fitted, rng = c - a * tokens ** -b, np.random.default_rng(0)
        spread = math.sqrt(((inverse - fitted) ** 2).sum())
        for _ in range(n_bootstrap):  # few residuals say little of the noise: its size is drawn too, as Student's t does
            noise = rng.standard_normal(len(tokens)) * spread / math.sqrt(rng.chisquare(free))
            others.append(Law(*least_squares(tokens, fitted + noise), tokens.min(), tokens.max(), []))
    return Law(a, b, c, tokens.min(), tokens.max(), others)


def least_squares(n, y):
    """(a, b, c) of y = c - a n**-b: linear least squares for a and c, inside a search over b that zooms in on the best of a grid."""
    low, high = B_RANGE
    scale = np.exp(np.log(n).mean())  # powers of n / scale are near 1: no precision is lost
    for _ in range(8):
        grid = np.geomspace(low, high, 40)
        x = (n / scale) ** -grid[:, None]
        dx, dy = x - x.mean(1, keepdims=True), y - y.mean()
        slope = (dx @ dy) / (dx**2).sum(1)
        best = int(((dy - slope[:, None] * dx) ** 2).sum(1).argmin())
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    b = grid[best]
    return float(-slope[best] * scale**b), float(b), float(y.mean() - slope[best] * x[best].mean())


def interpolate(points, ppl=None, n=None):
    """MLTE of a perplexity, or MLPE of n tokens, by no law: 1 / PPL is taken to be linear in log tokens between the neighbouring ones of
    points, [(tokens, perplexity)]. None outside their range."""
    tokens = np.array(sorted({t for t, _ in points}))
    inverse = np.maximum.accumulate([np.mean([1 / p for t, p in points if t == n_]) for n_ in tokens])
    if ppl is not None:
        return float(np.exp(np.interp(1 / ppl, inverse, np.log(tokens)))) if inverse[0] <= 1 / ppl <= inverse[-1] else None
    return float(1 / np.interp(np.log(n), np.log(tokens), inverse)) if tokens[0] <= n <= tokens[-1] else None


def recipe(config):
    """What a monolingual run must share with another for its law to apply: corpus, tokeniser, model, optimiser; as a string."""
    return json.dumps({k: v for k, v in config.items() if k not in NOT_OF_THE_RECIPE}, sort_keys=True)


# ---------------------------------------------------------------------------------------------------------------------
# The command

def evaluate_run(folder, config, corpus, table, model, last_n, most, device):
    """All that eval.json holds of one run but its token efficiency."""
    text, enc = data.tokens(corpus, "test"), encoder(corpus)
    context, seen = config["context"], runs.read_log(folder, "val_loss")[-1]["tokens_seen"]
    if len(text) < context + 1:
        raise BadInput(f"the test split of {config['corpus']} has {len(text)} tokens, fewer than one window of {folder} ({context + 1})")
    lengths = np.zeros(config["vocab_size"])
    for i in np.unique(text):
        lengths[i] = len(enc.decode_single_token_bytes(int(i))) if i != corpus["eot"] else 0
    languages = []
    for l, row in enumerate(table):
        progress(f"{folder}: scoring EN{l + 1} of {len(table)} languages on {min(most, len(text)):,} test tokens")
        losses = score(model, text, row, context, last_n, device, most)
        mean, error = mean_and_error(losses, text, corpus["eot"])
        kept = ~np.isnan(losses)
        languages.append({"name": f"EN{l + 1}", "tokens_seen": seen[l], "loss": mean, "loss_se": error, "ppl": math.exp(min(mean, 700)),
                          "ppl_se": error and math.exp(min(mean, 700)) * error, "bits_per_byte": losses[kept].sum() / math.log(2) / lengths[text[kept]].sum()})
    pairs = [p for l in range(1, len(table)) for p in ((0, l), (l, 0))]
    switch = {f"EN{a + 1}->EN{b + 1}": code_switch(model, text, table, a, b, context, device) for a, b in pairs}
    progress("")
    return {"checkpoint": file_sha256(folder / "model.pt"), "last_n": last_n, "tokens": most, "languages": languages, "code_switch": switch}


def law_points(group):
    """[(tokens, perplexity)] of the monolingual runs among [(config, result)]: for each number of tokens, those of the setting (batch size,
    learning rate, initial embeddings) that does best on average. A short run of large batches is short of steps as well as of tokens."""
    by_tokens = {}
    for config, result in group:
        if config["languages"] == 1:
            language, setting = result["languages"][0], tuple(config.get(key) for key in TUNED)
            by_tokens.setdefault(language["tokens_seen"], {}).setdefault(setting, []).append(language["ppl"])
    return [(n, ppl) for n, settings in by_tokens.items() for ppl in min(settings.values(), key=np.mean)]


def add_efficiency(results):
    """Add mlpe, mlte, teff, its interval and whether it is extrapolated to each language of [(folder, config, result)]; return the remarks."""
    remarks = []
    for language in (language for _, _, result in results for language in result["languages"]):
        for stale in ("mlpe", "mlte", "teff", "teff_interval", "extrapolated", "mlpe_interpolated", "teff_interpolated"):
            language.pop(stale, None)
    for key in dict.fromkeys(recipe(config) for _, config, _ in results):
        group = [(config, result) for _, config, result in results if recipe(config) == key]
        mono = law_points(group)
        try:
            law = fit_law([n for n, _ in mono], [ppl for _, ppl in mono])
        except BadInput as error:
            remarks.append(f"no token efficiency for {sum(config['languages'] > 1 for config, _ in group)} of the runs: {error}")
            continue
        remarks.append(f"monolingual law: 1/PPL = {law.c:.4g} - {law.a:.4g} n^-{law.b:.3f}, from {len(mono)} runs of {law.smallest:,.0f} to {law.largest:,.0f} tokens"
                       + "; b is at the edge of its range: they follow no power law yet, and TEff interpolated between the runs is the better guide" * (not B_RANGE[0] * 1.01 < law.b < B_RANGE[1] * 0.99))
        for language in (language for _, result in group for language in result["languages"] if language["tokens_seen"]):
            n, ppl = language["tokens_seen"], language["ppl"]
            interval, between = law.interval(ppl), interpolate(mono, ppl=ppl)
            finite = lambda value: value if math.isfinite(value) else None  # JSON has no infinity
            language |= {"mlpe": finite(law.ppl(n)), "mlte": finite(law.tokens(ppl)), "teff": finite(law.tokens(ppl) / n),
                         "teff_interval": interval and [finite(v / n) for v in interval], "extrapolated": bool(law.extrapolated(ppl)),
                         "mlpe_interpolated": interpolate(mono, n=n), "teff_interpolated": between and between / n}
    return remarks


def print_table(results):
    print(f"\n{'run':28} {'':5}{'tokens seen':>13}{'perplexity':>12}{'± se':>8}{'bits/byte':>11}{'MLPE':>9}{'MLTE':>13}{'TEff':>7}{'interpolated':>14}  95 % interval of the law")
    for folder, _, result in results:
        for i, x in enumerate(result["languages"]):
            line = f"{folder.name[:28] if i == 0 else '':28} {x['name']:5}{x['tokens_seen']:13,}{x['ppl']:12,.2f}"
            line += f"{x['ppl_se']:8.2f}" if x["ppl_se"] is not None else f"{'-':>8}"
            line += f"{x['bits_per_byte']:11.3f}"
            if "teff" in x:
                show = lambda value, form: format(value, form) if value is not None else "never"
                line += f"{show(x['mlpe'], '.2f'):>9}{show(x['mlte'], ',.0f'):>13}{show(x['teff'], '.2f'):>7}"
                line += f"{x['teff_interpolated'] or math.nan:14.2f}  ".replace("nan", "  -")
                line += " to ".join(show(v, ".2f") for v in x["teff_interval"]) if x["teff_interval"] else "-"
                line += "  extrapolated" * x["extrapolated"]
            print(line)
    switches = [(folder, pair, r) for folder, _, result in results for pair, r in result["code_switch"].items()]
    if switches:
        head = "".join(f"{w:>10}" for w in ("same", "switched", "none", "gap"))
        print(f"\nCode-switching: loss in nats of the second half of a window, when the first half was in the same language, in another, or not there;\n"
              f"gap: switched - same, 0 where all of the context carries across, about none - same where nothing does\n"
              f"{'run':28} {'':12}{'softmax over all ids':^40}  {'over the second language only':^40}\n{'':41}{head}  {head}")
    for folder, pair, r in switches:
        cells = ["".join(f"{r[kind][case]:10.3f}" for case in ("same", "switched", "none", "gap")) for kind in ("plain", "within")]
        print(f"{folder.name[:28]:28} {pair:12}{cells[0]}  {cells[1]}")


def print_samples(model, enc, prompt, table, n=60, width=46):
    """One prompt [T], continued by n tokens in each language, decoded, in columns of at most three languages."""
    print(f"\nprompt: {enc.decode(prompt.tolist())!r}\n")
    columns = []
    for l, row in enumerate(table[:3]):
        out = model.sample(torch.from_numpy(row[prompt]).to(model.embedding.device), n)[len(prompt):].cpu().numpy()
        own = np.isin(out, row).mean()
        lines = [part for line in enc.decode((out % len(row)).tolist()).split("\n") for part in textwrap.wrap(line, width)]
        columns.append([f"EN{l + 1} ({own:.0%} of its tokens are EN{l + 1}'s)", "-" * width] + lines)
    for i in range(max(map(len, columns))):
        print("   ".join(f"{column[i] if i < len(column) else '':{width}}" for column in columns).rstrip())


def main():
    parser = Parser(__doc__)
    parser.positional("runs", "folders of finished runs, of one corpus")
    parser.option("--last_n", None, "positions scored at the end of each window; the fewer, the more context they have (default: a quarter of the context)", int)
    parser.option("--tokens", 262144, "test tokens scored a language, about, in windows spread evenly over the test split; all of it if it has fewer", int)
    parser.option("--sample", False, "print a continuation of one prompt in each language, and nothing else", bool)
    parser.option("--device", "auto", "cpu, cuda or mps; auto takes the best there is")
    args, _ = parser.parse()
    device = pick_device(args.device)
    results = []
    for folder, config, corpus, table, model in runs.open_runs(args.runs, device):
        last_n = args.last_n if args.last_n is not None else max(1, config["context"] // 4)
        if not 0 < last_n <= config["context"]:
            raise BadInput(f"--last_n={last_n}: expected 1 to {config['context']}, the context of {folder}")
        if args.tokens < 1:
            raise BadInput(f"--tokens={args.tokens}: expected 1 or more")
        if args.sample:
            print_samples(model, encoder(corpus), data.tokens(corpus, "test")[:32], table)
            continue
        try:
            result = json.loads((folder / "eval.json").read_text())
            fresh = result["checkpoint"] == file_sha256(folder / "model.pt") and (result["last_n"], result["tokens"]) == (last_n, args.tokens)
        except (OSError, ValueError, KeyError, TypeError):
            fresh = False
        results.append((folder, config, result if fresh else evaluate_run(folder, config, corpus, table, model, last_n, args.tokens, device)))
    if args.sample:
        return
    remarks = add_efficiency(results)
    for folder, _, result in results:
        write_json(folder / "eval.json", result)
    print_table(results)
    print("\n" + "\n".join(remarks) + f"\neval.json is in each run's folder. Next:\n  python eval.py {results[0][0]} --sample")
    if many := [str(folder) for folder, config, _ in results if config["languages"] > 1]:
        print(f"  python align.py {' '.join(many)}")


if __name__ == "__main__":
    run(main)
