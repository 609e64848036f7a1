"""Chat with a model in the terminal or on a web page.

    python interactive.py                                        # the newest instruction-tuned checkpoint
    python interactive.py --model_path ckpts/SmolLM2-135M-Instruct
    python interactive.py --base_url http://127.0.0.1:8000/v1    # vLLM or another OpenAI-compatible server
    python interactive.py --web --articles --task example        # a page on http://127.0.0.1:7860
    python interactive.py --web --compare ckpts/SmolLM2-135M-Instruct --task example   # two models side by side
    echo "Tell me about the article ..." | python interactive.py

A model without a chat template continues the given text. /help lists the commands.
"""

import argparse
import functools
import sys

from chat.compare import OPEN_BOOK, Comparer, Corpus, Side, corpus_names, label_sides, trained_task
from chat.conversation import Conversation, Sampling, parse_temperature
from chat.engines import make_engine, open_engine
from chat.repl import Repl, print_notice
from chat.web import Article, WebSettings, serve
from tasks.documents import Document, load_task
from tasks.rag import message_search
from tasks.readers import import_corpus
from utils import cli, paths
from utils.cli import int_between, positive_fraction, positive_int
from utils.errors import UserError, run


def main() -> None:
    args = parse_arguments()
    validate(args)
    task = args.task = import_corpus(args.corpus, args.strict) if args.corpus else args.task
    documents = load_task(task or "quality") if args.articles else []
    find_corpus = functools.cache(lambda: Corpus(task, message_search(load_task(task))) if task else None)
    corpus = find_corpus() if args.compare else None  # its errors, before a model is loaded
    engine = make_engine(args)
    if engine.is_base_model and args.system:
        raise UserError("--system: a base model takes no system message; leave it out")
    comparer = Comparer(functools.partial(open_engine, args), find_corpus)
    sides = [Side(engine, engine.name, Conversation(args.system))]
    sides += [comparer.second_side(sides[0], args.compare, "--compare")] if args.compare else []
    label_sides(sides)
    sampling = Sampling(args.temperature, args.top_p, args.max_tokens, args.seed)
    if args.web:
        serve(sides, web_settings(args, sides, sampling, corpus, documents))
        return
    if any(side.engine.is_base_model for side in sides):
        print_notice("Base model: it continues the text of each message, and sees no earlier messages.")
    if sys.stdin.isatty():
        print_notice("/help lists the commands, Ctrl-D quits.")
    titles = [document.title for document in load_task(task)] if task and sys.stdin.isatty() else []
    Repl(sides, sampling, comparer, titles).run()


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    add_model_arguments(parser)
    add_reply_arguments(parser)
    add_web_arguments(parser)
    args = parser.parse_args()
    if not args.web:
        cli.refuse_without_effect(parser, args, "articles host port", "without --web")
    return args


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    path_help = "checkpoint folder or hub name, also of a server's model; by default the newest ckpts/instruct-*"
    group.add_argument("--model_path", help=path_help)
    cli.add_base_url_flag(group, "chat with a model on this OpenAI-compatible server")
    group.add_argument("--model", help="the server's name for the model; by default the only one it lists")
    group.add_argument("--complete", action="store_true", help="continue text, as with a base model")
    compare_help = f"a second model beside it (checkpoint or server's model), or {OPEN_BOOK}: the same, with passages"
    group.add_argument("--compare", metavar="MODEL", help=compare_help)


def add_reply_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("replies")
    add = group.add_argument
    add("--system", default="", help="system message; empty by default")
    add("--temperature", type=parse_temperature, default=0.7, help="sampling temperature; 0 is greedy")
    add("--top_p", type=positive_fraction, default=0.95, help="nucleus sampling threshold")
    add("--max_tokens", type=positive_int, default=512, help="maximum length of a reply, in tokens")
    cli.add_seed_flag(group, "of the sampling")


def add_web_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("web page").add_argument
    add("--web", action="store_true", help="serve a web page")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 listens on all")
    add("--port", type=int_between(1, 65535), default=7860, help="port to listen on")
    add("--articles", action="store_true", help="offer the corpus's titles as example messages")
    group = parser.add_argument_group("corpus: titles of --articles, passages of --compare")
    cli.add_corpus_flags(group)
    parser.set_defaults(task=None)  # no passages are searched; titles are QuALITY's


def validate(args: argparse.Namespace) -> None:
    if args.model and (args.model_path or not args.base_url):
        raise UserError(f"--model {args.model}: names a server's model; use it with --base_url, without --model_path")
    if (args.corpus or args.task) and args.web and not (args.articles or args.compare):
        raise UserError("--task and --corpus: for titles and passages only; add --articles or --compare MODEL")


def web_settings(
    args: argparse.Namespace, sides: list[Side], sampling: Sampling, corpus: Corpus | None, documents: list[Document]
) -> WebSettings:
    """The page's settings: the documents of --articles, what is known about the models, the passages of their corpus."""
    task = args.task or next(filter(None, (trained_task(side.engine.name) for side in sides)), "")
    articles = [Article(one.title, " ".join(filter(None, (one.byline, one.year))), one.text) for one in documents]
    known = {side.label: describe_checkpoint(side.engine.name) for side in sides}
    labelled = [f"{label}: {text}" if len(sides) > 1 else text for label, text in known.items() if text]
    pages = [page for page in map(paths.passage_page, sorted(corpus_names(task), reverse=True)) if page.is_file()]
    command = f"python data/inspect_entigraph.py --task {task} --html" if task else ""
    about, page = " · ".join(labelled), pages[0] if pages else None
    return WebSettings(sampling, args.system, articles, args.host, args.port, corpus, about, page, command)


def describe_checkpoint(name: str) -> str:
    """The corpus that a checkpoint was trained on, and its accuracy, as far as they are known."""
    from tasks.results import describe_metrics, read_result  # heavy: numpy, scipy

    task, file = trained_task(name), paths.evaluation_file(name)
    parts = [f"trained on {task}"] if task else []
    if file.is_file():
        result = read_result(file)
        if result["protocol"].get("weights") == paths.weights_state(name):
            parts.append(f"closed book on {result['protocol'].get('task')}: {describe_metrics(result['metrics'])}")
    return "; ".join(parts)


if __name__ == "__main__":
    run(main)
