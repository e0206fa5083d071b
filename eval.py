"""How well was each language learned, and how much of that came from the others?

    python eval.py runs/a runs/b ...   # one table for all; give monolingual runs of several
                                       # lengths too, for token efficiency
    python eval.py runs/a --sample     # one prompt, continued in each language, side by side
    python eval.py runs/a --sample --prompt="Once upon a time"   # a prompt of your own
    python eval.py runs/a --text=my_novel.txt   # the same measures on a text of your own

Perplexity is over the test split, the same text for every clone, and each real language's own. It
is of the last positions of overlapping windows, so that every token that is scored has context
(paper: the last 128 of 512). An encoder's is of masked tokens.

Token efficiency: a power law is fitted to the monolingual runs.
    MLPE   the perplexity that a monolingual model reaches on as many tokens
    MLTE   the tokens on which a monolingual model reaches this perplexity
    TEff   MLTE over the tokens that were seen. Above 1: something crossed over from the others

Code-switching: the loss of the second half of a window after a first half in another language.
"""
import json
import math
import shlex
import textwrap
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

import clone
import data
import runs
from lib.cli import BadInput, Parser, plural, progress, run_main, write_json
from model import pick_device

TEST_TOKENS = 131072  # scored a language, about; of an encoder, read
SWITCH_TOKENS = 65536  # of test text, for the code-switch test
B_RANGE = 0.01, 3.0  # of the law's exponent

# ------------------------------------------------------------------------------------------------
# Perplexity

@torch.no_grad()
def score(model, text, row, context, last_n, most=math.inf):
    """Loss in nats of each token of a text in one language, float64 [len(text)].

    Every token but the first few is scored once, with at least context - last_n tokens before it.
    With context 4 and last_n 2, the windows of ten tokens and what each scores (x):

        position   0 1 2 3 4 5 6 7 8 9
        window 1   . . . x x
        window 2       . . . x x
        window 3           . . . x x
        window 4             . . . x x     the last one ends with the text

    nan for the first context - last_n + 1 tokens, which have too little before them. An encoder
    sees both sides of a token: so its windows lie side by side, and of each the masked tokens are
    scored, always the same ones; nan for all others.

    row [V]: the language's ids, a row of clone.clone_table. most: score about that many tokens (of
    an encoder: read them), in windows spread evenly over the text; nan for the rest. Raises
    BadInput if a loss is not finite.
    """
    losses = np.full(len(text), np.nan)
    masked = model.config["arch"] == "encoder"
    stride = context if masked else last_n
    last_start = len(text) - 1 - context
    starts = np.append(np.arange(0, last_start, stride), last_start)
    if len(starts) * stride > most:
        kept = np.linspace(0, len(starts) - 1, max(1, int(most) // stride)).astype(int)
        starts = starts[kept]

    first = 0  # the number of a group's first window
    for group in np.array_split(starts, math.ceil(len(starts) * context / 8192)):
        window = group[:, None] + np.arange(context + 1)  # positions [windows, T + 1]
        scored = model.text_losses(row[text[window]], row, last_n, first)
        if not scored.isfinite().all():
            raise BadInput("a loss is not finite: the model is broken, train it anew")
        if masked:
            dice = clone.roll_dice(range(first, first + len(group)), context)
            places = np.take_along_axis(window, clone.masked_places(dice), 1)
        else:
            places = window[:, -last_n:]
        losses[places] = scored.cpu().double().numpy()
        first += len(group)
    return losses


def mean_and_error(losses, text, eot):
    """Mean loss of the scored tokens, and its standard error over documents.

    Tokens of one document are alike, so a document counts as one draw. The error is None for a
    single document.
    """
    ends = np.asarray(text) == eot
    document = np.cumsum(ends) - ends  # its end-of-text is a document's last token
    scored = ~np.isnan(losses)
    n = np.bincount(document[scored])
    total = np.bincount(document[scored], losses[scored])
    n, total = n[n > 0], total[n > 0]

    mean = total.sum() / n.sum()
    documents = len(n)
    if documents < 2:
        return mean, None
    # of a ratio of sums: the spread of each document's excess, total - mean * n
    squares = ((total - mean * n) ** 2).sum() * documents / (documents - 1)
    return mean, math.sqrt(squares) / n.sum()


# ------------------------------------------------------------------------------------------------
# Code-switching

@torch.no_grad()
def code_switch(model, text, table, first, second, context):
    """Loss in nats of the second half of windows, after a first half in this or another language.

    Returns {"plain": ..., "within": ...}. "within" takes the softmax over the second language's
    ids only, since the plain one mostly measures whether the model has noticed the switch. In
    each:
        same       the first half is in the second language too
        switched   the first half is in the first language
        none       there is no first half; an encoder-decoder, which needs one, has that of a
                   window far away
        gap        switched - same: 0 where all of the context carries across
        worth      none - same: what there is to carry
    """
    device, arch = model.embedding.device, model.config["arch"]
    half = context // 2
    base = clone.spread(text, context, max(1, SWITCH_TOKENS // context))  # [n, T + 1]
    n = len(base)
    before, second_half = base[:, :half], table[second][base[:, half:]]
    first_half = {
        "same": table[second][before],
        "switched": table[first][before],
        "none": before[:, :0],
    }
    if arch == "encoder-decoder":
        first_half["none"] = np.roll(first_half["same"], n // 2, axis=0)
    if arch == "encoder":  # only the second half is masked
        dice = clone.roll_dice(range(n), context - half)
        lang = np.full(n, second)
        shown, places = clone.mask_tokens(second_half, table, lang, dice)

    result = {}
    own_ids = torch.from_numpy(np.unique(table[second])).to(device)
    for kind, rows in (("within", own_ids), ("plain", model.own_ids(table[second]))):
        if kind == "plain" and rows is not None:  # a head per language has no other softmax
            result["plain"] = result["within"]
            continue
        means = {}
        for case, start in first_half.items():
            arrays = [np.concatenate([start, second_half], axis=1)]
            if arch == "encoder":
                arrays += [np.concatenate([start, shown], axis=1), places + start.shape[1]]
            losses = []
            at_a_time = max(1, 8192 // context)
            for i in range(0, n, at_a_time):
                ids, *masked = (torch.from_numpy(x[i:i + at_a_time]).to(device) for x in arrays)
                losses.append(model.token_losses(ids, context - half, rows, *masked))
            means[case] = torch.cat(losses).cpu().double().mean().item()
        means["gap"] = means["switched"] - means["same"]
        means["worth"] = means["none"] - means["same"]
        result[kind] = means
    return result


# ------------------------------------------------------------------------------------------------
# The monolingual scaling law: MLPE, MLTE, TEff

@dataclass
class Law:
    """1 / PPL(n) = c - a n**-b (paper: Metrics).

    others: the same fit to the points with noise as large as the residuals, for intervals.
    """
    a: float
    b: float
    c: float
    smallest: float  # number of tokens that it was fitted to
    largest: float
    others: list

    def ppl(self, n):
        """MLPE: the perplexity that a monolingual model reaches on n tokens; inf for none."""
        inverse = self.c - self.a * n ** -self.b
        return 1 / inverse if inverse > 0 else math.inf

    def tokens(self, ppl):
        """MLTE: the tokens on which a monolingual model reaches a perplexity; inf for never."""
        rest = self.c - 1 / ppl
        if rest <= 0 or self.a <= 0:
            return math.inf
        return math.exp(min(700, math.log(self.a / rest) / self.b))

    def interval(self, ppl):
        """95 % interval of tokens(ppl), from what the fit's own residuals say.

        None where three points leave no residual. On simulated runs of five lengths, on the paper's
        law with noise of 1 %, it held the truth in 91 to 97 of 100, by length.
        """
        if not self.others:
            return None
        tokens = [law.tokens(ppl) for law in self.others]
        low, high = np.quantile(tokens, [0.025, 0.975], method="nearest")
        return float(low), float(high)

    def extrapolated(self, ppl):
        """Whether tokens(ppl) lies outside the fitted range by more than a factor of 2."""
        return not self.smallest / 2 <= self.tokens(ppl) <= self.largest * 2


def fit_law(tokens, ppl, n_bootstrap=400):
    """Fit the law to complete monolingual runs: tokens [n], ppl [n].

    Raises BadInput for fewer than three different numbers of tokens, or perplexities that do not
    fall with tokens.
    """
    lengths = len(set(tokens))
    if lengths < 3:
        raise BadInput("a scaling law needs monolingual runs of 3 or more lengths, not "
                       f"{lengths}: python train.py --languages=1 --steps=...")
    points = sorted(zip(tokens, 1 / np.asarray(ppl, float)))  # in whatever order they are given
    tokens, inverse = np.array(points).T
    a, b, c = least_squares(tokens, inverse)
    if not a > 0:
        raise BadInput("no scaling law fits: "
                       "the perplexity of the monolingual runs does not fall with their tokens")

    # how far off may it be? Fit again and again to the fitted curve with noise added, as large as
    # the residuals, in percent: two runs of one length differ by some percent in perplexity,
    # whatever the length. Few residuals say little of how large the noise is: so its size is drawn
    # too, as Student's t does
    others, free = [], len(tokens) - 3
    if free > 0:
        fitted = c - a * tokens ** -b
        spread = math.sqrt(((inverse / fitted - 1) ** 2).sum())
        rng = np.random.default_rng(0)
        for _ in range(n_bootstrap):
            noise = rng.standard_normal(len(tokens)) * spread / math.sqrt(rng.chisquare(free))
            fit = least_squares(tokens, fitted * (1 + noise))
            others.append(Law(*fit, tokens.min(), tokens.max(), []))
    return Law(a, b, c, tokens.min(), tokens.max(), others)


def least_squares(n, y):
    """(a, b, c) of the curve y = c - a n**-b nearest to the points n [points], y [points].

    For a given b the curve is a straight line in x = n**-b, and a and c have a formula. So only b
    has to be searched: try 40 values, take the best, and zoom in on its neighbourhood, 8 times.
    """
    low, high = B_RANGE
    scale = np.exp(np.log(n).mean())  # powers of n / scale are near 1: no precision is lost
    dy = y - y.mean()
    for _ in range(8):
        grid = np.geomspace(low, high, 40)
        x = (n / scale) ** -grid[:, None]  # [40, points]
        dx = x - x.mean(1, keepdims=True)
        slope = (dx @ dy) / (dx**2).sum(1)  # of the best line for each b [40]
        residuals = dy - slope[:, None] * dx
        best = int((residuals**2).sum(1).argmin())
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    b = grid[best]
    a = -slope[best] * scale**b
    c = y.mean() - slope[best] * x[best].mean()
    return float(a), float(b), float(c)


def interpolate(points, ppl=None, n=None):
    """MLTE of a perplexity, or MLPE of n tokens, by no law; None outside the range of the points.

    points: [(tokens, perplexity)]. 1 / PPL is taken to be linear in log tokens between neighbours.
    """
    if not points:
        return None
    tokens = np.array(sorted({t for t, _ in points}))
    inverse = []
    for this in tokens:
        inverse.append(np.mean([1 / p for t, p in points if t == this]))
    inverse = np.maximum.accumulate(inverse)  # more tokens never count as worse

    if ppl is not None:
        if not inverse[0] <= 1 / ppl <= inverse[-1]:
            return None
        return float(np.exp(np.interp(1 / ppl, inverse, np.log(tokens))))
    if not tokens[0] <= n <= tokens[-1]:
        return None
    return float(1 / np.interp(np.log(n), np.log(tokens), inverse))


def teff_between(points, ppl, n):
    """Token efficiency of a perplexity on n tokens, interpolated; None outside the range."""
    tokens = interpolate(points, ppl=ppl)
    return tokens and tokens / n


# ------------------------------------------------------------------------------------------------
# Which monolingual runs a run is measured against

# a monolingual run may have its own: it is what a monolingual model *can* reach that counts
TUNED = ("batch_size", "lr", "embedding_std")
# the corpus counts by its hash, not by its name
# and of one language, a head of its own is the head
NOT_OF_THE_RECIPE = {"ratio", "languages", "schedule", "cloned", "clone", "anchor_seed", "steps",
                     "seed", "size", "dtype", "corpus", "vocabulary", "parallel", "heads", *TUNED}


def recipe(config, l=0):
    """What language l of a run and the monolingual runs beside it must share, as a string.

    That is its corpus, tokeniser, model and optimiser. Real languages have a corpus each, so
    English is measured against monolingual English runs, and French against French ones.
    """
    shared = {k: v for k, v in vars(config).items() if k not in NOT_OF_THE_RECIPE}
    for key in ("corpus_sha256", "data_sha256"):
        hashes = shared.get(key)
        if isinstance(hashes, list):
            shared[key] = hashes[l]
    return json.dumps(shared, sort_keys=True)


def setting(config):
    """Batch size, learning rate and initial embeddings of a config (TUNED), as a tuple."""
    return tuple(getattr(config, key, None) for key in TUNED)


def law_points(group):
    """[(tokens, perplexity)] of the monolingual runs among [(config, result)].

    For each number of tokens, the runs of the one setting (batch size, learning rate, initial
    embeddings) that does best on average: a short run of large batches is short of steps as well
    as of tokens, and a law through it would flatter every other run.
    """
    by_tokens, seen = {}, set()
    for config, result in group:
        checkpoint = result.get("checkpoint")
        if checkpoint in seen:  # a run that is given twice, or a copy of it, counts once
            continue
        if checkpoint:
            seen.add(checkpoint)
        if config.languages == 1:
            language = result["languages"][0]
            settings = by_tokens.setdefault(language["tokens_seen"], {})
            settings.setdefault(setting(config), []).append(language["ppl"])

    points = []
    for n, settings in by_tokens.items():
        best = min(settings.values(), key=np.mean)
        points += [(n, ppl) for ppl in best]
    return points


def monolingual_options(steps, batch_size, percent):
    """Options of train.py for a monolingual run on so many percent of a run's tokens, at its best.

    Batches are halved until there are 1,500 steps, or one sequence a step: a short run of large
    batches is short of steps as well as of tokens (paper/search.md, "a fair baseline").
    """
    sequences = steps * batch_size * percent / 100
    while sequences / batch_size < 1500 and batch_size > 1:
        batch_size //= 2
    steps = max(1, round(sequences / batch_size))
    return {"languages": 1, "steps": steps, "batch_size": batch_size}


def monolingual_beside(folder, config, l=0):
    """[(tokens, perplexity)] of the finished monolingual runs beside a run, in the same folder.

    They share its recipe, of language l, and the type of its activations. Their perplexity is that
    of the last validation in log.jsonl: so no eval.py is needed, and all are scored on one text.
    """
    group = []
    for path in folder.parent.glob("*/config.json"):
        try:
            other = runs.read_config(path.parent)
            last = runs.read_log(path.parent, "val_loss")[-1]
        except (BadInput, OSError, ValueError, IndexError):
            continue  # of an older version, or only just begun
        finished = last["step"] == other.steps
        if finished and (recipe(other), other.dtype) == (recipe(config, l), config.dtype):
            languages = []
            for tokens, loss in zip(last["tokens_seen"], last["val_loss"]):
                languages.append({"tokens_seen": tokens, "ppl": math.exp(min(loss, 700))})
            group.append((other, {"languages": languages}))
    return law_points(group)


def add_efficiency(results):
    """Add MLPE, MLTE and TEff to each language of [(folder, config, result)]; return the remarks.

    By the law, with an interval and whether it is extrapolated; and interpolated between the runs.
    Runs are measured against monolingual ones of the same recipe. "teff_same_batch" is interpolated
    between those alone that have the run's own setting, batch size above all. That is the paper's
    way, and the easier one: a short monolingual run of large batches has few steps.
    """
    keys = ("mlpe", "mlte", "teff", "teff_interval", "extrapolated", "mlpe_interpolated",
            "teff_interpolated", "teff_same_batch")
    groups = {}  # by recipe: the languages that one law is for, [(config, result, l)]
    for _, config, result in results:
        for l, language in enumerate(result["languages"]):
            for key in keys:
                language.pop(key, None)  # those of an earlier call
            groups.setdefault(recipe(config, l), []).append((config, result, l))

    remarks = []
    dtypes = sorted({getattr(config, "dtype", "float32") for _, config, _ in results})
    if len(dtypes) > 1:
        remarks.append(f"some of the runs are in {' and some in '.join(dtypes)}: "
                       "what is small may be of the type")
    for group in groups.values():
        # the laws of real languages are told apart by their names
        names = {result["languages"][l]["name"] for config, result, l in group
                 if config.languages > 1 and not runs.are_clones(config)}
        of_whom = f"{', '.join(sorted(names))}: " if names else ""
        monolingual = [(config, result) for config, result, _ in group if config.languages == 1]
        points = law_points(monolingual)
        try:
            law = fit_law([n for n, _ in points], [ppl for _, ppl in points])
        except BadInput as error:
            without = len({id(result) for config, result, _ in group if config.languages > 1})
            if without:
                remarks.append(f"{of_whom}no token efficiency for {without} of the runs: {error}; "
                               "train.py ends with the commands of such runs")
            continue
        remarks.append(of_whom + describe(law, len(points)))
        same_batch = {}  # the points of each setting
        for own in {setting(config) for config, _, _ in group}:
            same_batch[own] = law_points([(c, r) for c, r in monolingual if setting(c) == own])
        for config, result, l in group:
            language = result["languages"][l]
            n, ppl = language["tokens_seen"], language["ppl"]
            if n:
                language |= efficiency(n, ppl, law, points, same_batch[setting(config)])
    return remarks


def efficiency(n, ppl, law, points, same_batch):
    """What eval.json says of the efficiency of one language, from its n tokens and perplexity."""
    interval = law.interval(ppl)
    return {
        "mlpe": finite(law.ppl(n)),
        "mlte": finite(law.tokens(ppl)),
        "teff": finite(law.tokens(ppl) / n),
        "teff_interval": interval and [finite(tokens / n) for tokens in interval],
        "extrapolated": bool(law.extrapolated(ppl)),
        "mlpe_interpolated": interpolate(points, n=n),
        "teff_interpolated": teff_between(points, ppl, n),
        "teff_same_batch": teff_between(same_batch, ppl, n),
    }


def finite(value):
    """The value, or None for infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def describe(law, n_runs):
    """The law in a line."""
    text = (f"monolingual law: 1/PPL = {law.c:.4g} - {law.a:.4g} n^-{law.b:.3f}, from {n_runs} "
            f"runs of {law.smallest:,.0f} to {law.largest:,.0f} tokens")
    if not B_RANGE[0] * 1.01 < law.b < B_RANGE[1] * 0.99:
        text += ("; b is at the edge of its range: they follow no power law yet, and TEff "
                 "interpolated between the runs is the better guide")
    text += ".\nIts interval is of the fit alone: the spread over seeds comes on top, and is larger"
    return text


# ------------------------------------------------------------------------------------------------
# One run

def evaluate_run(run, last_n, most):
    """All that eval.json holds of a run but its token efficiency. Raises BadInput."""
    context, texts = run.config.context, run.texts("test")
    # the code-switch test of an encoder-decoder takes the first half of another window
    n_windows = 2 if run.config.arch == "encoder-decoder" else 1
    for name, text in zip(run.names, texts):
        runs.check_length(run, name, text, n_windows)

    seen = runs.read_log(run.folder, "val_loss")[-1]["tokens_seen"]
    languages, lengths = [], {}  # of the tokens of each text
    for l, (name, text, row, enc) in enumerate(zip(run.names, texts, run.table, run.encoders)):
        progress(f"{run.folder}: scoring {name}, of {len(run.table)} languages, "
                 f"on {min(most, len(text)):,} test tokens")
        losses = score(run.model, text, row, context, last_n, most)
        mean, error = mean_and_error(losses, text, enc.eot_token)
        ppl = math.exp(min(mean, 700))
        scored = ~np.isnan(losses)
        if id(text) not in lengths:  # clones have one text
            lengths[id(text)] = token_lengths(enc, text)
        n_bytes = lengths[id(text)][text[scored]].sum()
        languages.append({
            "name": name,
            "tokens_seen": seen[l],
            "loss": mean,
            "loss_se": error,
            "ppl": ppl,
            "ppl_se": None if error is None else ppl * error,
            "bits_per_byte": losses[scored].sum() / math.log(2) / n_bytes,
        })

    # EN1 and each other clone, both ways. Real languages have no such test, which takes one text in
    # two languages
    directions = []
    if run.clones:
        for l in range(1, len(run.table)):
            directions += [(0, l), (l, 0)]
    switch = {}
    for a, b in directions:
        switch[f"{run.names[a]}->{run.names[b]}"] = code_switch(
            run.model, texts[0], run.table, a, b, context)
    progress("")
    return {
        "checkpoint": data.file_sha256(run.folder / "model.pt"),
        "last_n": last_n,
        "tokens": most,
        "languages": languages,
        "code_switch": switch,
    }


def token_lengths(enc, text):
    """How many bytes each token of a text spells, for bits per byte [V]; end-of-text: none."""
    lengths = np.zeros(enc.n_vocab)
    for i in np.unique(text):
        if i != enc.eot_token:
            lengths[i] = len(enc.decode_single_token_bytes(int(i)))
    return lengths


def load_result(run, last_n, most):
    """eval.json of a run, if it is of this checkpoint and these settings; else None."""
    try:
        result = json.loads((run.folder / "eval.json").read_text())
        measured = result["checkpoint"], result["last_n"], result["tokens"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if measured != (data.file_sha256(run.folder / "model.pt"), last_n, most):
        return None
    return result


# ------------------------------------------------------------------------------------------------
# The command

def print_table(results):
    """Perplexity and token efficiency, a line a language, of [(folder, config, result)]."""
    head = (f"\n{'run':28} {'':5}{'tokens seen':>13}{'perplexity':>12}{'± se':>8}"
            f"{'bits/byte':>11}")
    if any("teff" in x for _, _, result in results for x in result["languages"]):
        head += f"{'MLPE':>9}{'MLTE':>13}{'TEff, law':>11}{'TEff':>7}  95 % interval of the law"
    print(head)
    for folder, _, result in results:
        name = folder.name[:28]
        for x in result["languages"]:
            error = "-" if x["ppl_se"] is None else f"{x['ppl_se']:.2f}"
            line = (f"{name:28} {x['name']:5}{x['tokens_seen']:13,}{x['ppl']:12,.2f}{error:>8}"
                    f"{x['bits_per_byte']:11.3f}")
            if "teff" in x:
                between = "-" if x["teff_interpolated"] is None else f"{x['teff_interpolated']:.2f}"
                interval = "-"
                if x["teff_interval"]:
                    interval = " to ".join(number(v, ".2f") for v in x["teff_interval"])
                line += (f"{number(x['mlpe'], '.2f'):>9}{number(x['mlte'], ',.0f'):>13}"
                         f"{number(x['teff'], '.2f'):>11}{between:>7}  {interval}")
                if x["extrapolated"]:
                    line += "  extrapolated"
            print(line)
            name = ""


def check_can_sample(folder, config):
    """Raise BadInput for an encoder."""
    if config.arch == "encoder":
        raise BadInput(f"{folder} is an encoder, which fills in masked tokens and cannot continue "
                       "a text: leave --sample out")


def encode_prompt(run, words):
    """The user's own words in the tokens of each language [N, ...]. Raises BadInput."""
    prompts = [np.array(enc.encode_ordinary(words)) for enc in run.encoders]
    for name, prompt in zip(run.names, prompts):
        if run.config.arch == "encoder-decoder" and len(prompt) < 2:
            raise BadInput(f"--prompt={words} is one token of {name}, and {run.folder} is an "
                           "encoder-decoder, which reads all of a prompt but the last token: "
                           "expected two or more")
        if len(prompt) > run.config.context:
            print(f"{run.folder}: the prompt has {len(prompt)} tokens of {name}, of which the "
                  f"model sees the last {run.config.context}")
    return prompts


def go_on(run, prompts, n, **dice):
    """How each language goes on from its prompt by n tokens, each by the same dice.

    prompts [N, ...]: in the tokens of its tokeniser. dice: temperature and seed of GPT.sample.
    Returns [(what it writes, the share of its tokens that are the language's own)].
    """
    model, written = run.model, []
    for row, prompt in zip(run.table, prompts):
        ids = torch.from_numpy(row[prompt]).to(model.embedding.device)
        out = model.sample(ids, n, rows=model.own_ids(row), **dice)[len(prompt):].cpu().numpy()
        text = clone.spell(out, run.encoders, run.table)
        written.append((text, float(np.isin(out, row).mean())))
    return written


def number(value, form):
    return "never" if value is None else format(value, form)


def print_switches(results):
    """The code-switch test, a line a pair of languages."""
    if not any(result["code_switch"] for _, _, result in results):
        return
    cases = ("same", "switched", "none", "gap")
    head = "".join(f"{case:>10}" for case in cases)
    print("\nCode-switching: loss in nats of the second half of a window, when the first half was "
          "in the same language, in another, or not there\n(of an encoder-decoder: that of another "
          "text); gap: switched - same, 0 where all of the context carries across,\nabout none - "
          "same where nothing does. A head per language has a softmax over its own ids only\n"
          f"{'run':28} {'':12}{'softmax over all ids':^40}  "
          f"{'over the second language only':^40}\n{'':41}{head}  {head}")
    for folder, _, result in results:
        for pair, by_kind in result["code_switch"].items():
            plain, within = ("".join(f"{by_kind[kind][case]:10.3f}" for case in cases)
                             for kind in ("plain", "within"))
            print(f"{folder.name[:28]:28} {pair:12}{plain}  {within}")


def print_samples(run, prompts, n, width=46, **dice):
    """How each language goes on from its prompt by n tokens, in columns, three side by side.

    prompts [N, ...]: in the tokens of its tokeniser. Clones have one and the same. dice: as in
    go_on.
    """
    columns = []
    for name, enc, prompt, (written, own) in zip(run.names, run.encoders, prompts,
                                                 go_on(run, prompts, n, **dice)):
        column = [f"{name} ({own:.0%} of its tokens are {name}'s)", "-" * width]
        column += textwrap.wrap(f"prompt: {enc.decode(prompt.tolist())!r}", width) + [""]
        for line in written.split("\n"):
            column += textwrap.wrap(line, width)
        columns.append(column)

    for first in range(0, len(columns), 3):
        beside = columns[first:first + 3]
        print()
        for i in range(max(len(column) for column in beside)):
            cells = [column[i] if i < len(column) else "" for column in beside]
            print("   ".join(f"{cell:{width}}" for cell in cells).rstrip())


def print_short_samples(run, prompts, n=30, width=40):
    """The same in a line a language: the end of its prompt, and n tokens that follow."""
    for name, enc, prompt, (written, _) in zip(run.names, run.encoders, prompts,
                                               go_on(run, prompts, n)):
        before = enc.decode(prompt.tolist())[-width:]
        print(f"{name:6}{before!r:{width + 4}} -> {written!r}")


def check_last_n(folder, config, last_n):
    """Raise BadInput unless `last_n` positions can be scored at the end of each window of a run."""
    if last_n is None:
        return
    if config.arch == "encoder":
        raise BadInput(f"{folder} is an encoder, which is scored where the text is masked: leave "
                       "--last_n out")
    if config.arch == "encoder-decoder":
        most, of_what = config.context - config.context // 2, "what the decoder writes in"
    else:
        most, of_what = config.context, "the context of"
    if not 0 < last_n <= most:
        raise BadInput(f"--last_n={last_n}: expected 1 to {most}, {of_what} {folder}")


def main():
    parser = Parser(__doc__)
    parser.positional("runs", "folders of finished runs, of one corpus")
    parser.option("--last_n", None, "positions scored at the end of each window; the fewer, the "
                  "more context they have (default: a quarter of the context)", int)
    parser.option("--tokens", TEST_TOKENS, "test tokens scored a language, about (of an encoder: "
                  "read), in windows spread evenly over the test split; all of it if it has fewer",
                  int)
    parser.option("--sample", False, "print how each language goes on from the start of its test "
                  "text, and nothing else", bool)
    parser.option("--prompt", None, "with --sample: words of your own that each language goes on "
                  "from (default: the start of its test text)")
    parser.option("--length", 60, "with --sample: tokens to write", int)
    parser.option("--temperature", 0.8, "with --sample: the lower, the safer each token", float)
    parser.option("--seed", 0, "with --sample: another seed, another text", int)
    parser.option("--text", None, "of clones: a text of your own, or any that --corpus takes, to "
                  "be scored in place of the test split; the results go to eval-TEXT.json")
    parser.option("--corpus", None, "where the text of the runs is now, once for each (default: "
                  "where it was, or what data/ still has of it)", several=True)
    parser.option("--device", "auto", "cpu, cuda or mps; auto takes the best there is")
    args, given = parser.parse()
    device = pick_device(args.device)
    if args.tokens < 1:
        raise BadInput(f"--tokens={args.tokens}: expected 1 or more")

    for name in ("prompt", "length", "temperature", "seed"):
        if name in given and not args.sample:
            raise BadInput(f"--{name} goes with --sample")
    if args.length < 1 or not 0 < args.temperature < math.inf or args.seed < 0:
        raise BadInput(f"--length={args.length} --temperature={args.temperature:g} "
                       f"--seed={args.seed}: expected 1 or more, more than 0, and 0 or more")
    if args.prompt == "":
        raise BadInput("--prompt is empty: give words to go on from, or leave it out")
    if args.sample and args.text is not None:
        raise BadInput("--sample goes on from a --prompt: leave --text out")

    if args.sample:
        for run in runs.open_runs(args.runs, device, corpus=args.corpus, check=check_can_sample,
                                  sampling=True):
            prompts = run.languages.prompts
            if args.prompt is not None:
                prompts = encode_prompt(run, args.prompt)
            print(f"\n{run.folder}")
            print_samples(run, prompts, args.length, temperature=args.temperature,
                          seed=args.seed)
        return

    # those of another text are never taken for those of the test split
    file = f"{runs.result_name('eval', args.text)}.json"
    results, was_there = [], 0
    for run in runs.open_runs(args.runs, device, corpus=args.corpus,
                              check=partial(check_last_n, last_n=args.last_n), text=args.text):
        last_n = args.last_n
        if last_n is None and run.config.arch != "encoder":
            last_n = max(1, run.config.context // 4)
        result = load_result(run, last_n, args.tokens) if args.text is None else None
        was_there += result is not None
        result = result or evaluate_run(run, last_n, args.tokens)
        if args.text is not None:
            result["text"] = args.text
        write_json(run.folder / file, result)  # token efficiency comes once all are scored
        results.append((run.folder, run.config, result))

    remarks = add_efficiency(results)
    if was_there:
        remarks.append(f"{plural(was_there, 'run')} not scored anew, but as in eval.json: delete "
                       "it if the code has changed since")
    for folder, _, result in results:
        write_json(folder / file, result)
    print_table(results)
    archs = {config.arch for _, config, _ in results}
    if "encoder" in archs:
        print("perplexity of an encoder: of the masked tokens, 15 % of the text, always the same")
    if "encoder-decoder" in archs:
        print("perplexity of an encoder-decoder: of the last tokens that the decoder writes, after "
              "a half that the encoder reads")
    print_switches(results)
    print("\n" + "\n".join(remarks))
    print(f"{file} is in each run's folder. Next:")
    folder, config, _ = results[0]
    if config.arch != "encoder":
        print(f"  python eval.py {folder} --sample")
    bilingual = [(folder, config) for folder, config, _ in results if config.languages > 1]
    if bilingual:
        more = "" if all(runs.are_clones(c) for _, c in bilingual) else " --parallel=PATH"
        if args.text is not None:
            more = f" {shlex.quote(f'--text={args.text}')}"
        print(f"  python align.py {' '.join(str(folder) for folder, _ in bilingual)}{more}")


if __name__ == "__main__":
    run_main(main)
