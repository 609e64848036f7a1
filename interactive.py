"""Chat with a model in the terminal or on a web page.

    python interactive.py                                        # the newest instruction-tuned checkpoint
    python interactive.py --model_path ckpts/SmolLM2-135M-Instruct
    python interactive.py --base_url http://127.0.0.1:8000/v1    # vLLM or another OpenAI-compatible server
    python interactive.py --web --articles --task example        # a page on http://127.0.0.1:7860
    echo "Tell me about the article ..." | python interactive.py

A model without a chat template continues the given text. /help lists the commands.
"""

import argparse
import sys

from chat.conversation import Engine, Sampling, parse_temperature
from chat.repl import Repl, print_notice
from chat.web import WebSettings, serve
from tasks.documents import load_task
from tasks.readers import import_corpus
from utils import cli, paths
from utils.cli import positive_fraction, positive_int
from utils.errors import UserError, run
from utils.io import read_json


def main() -> None:
    args = parse_arguments()
    validate(args)
    titles = article_titles(args)
    engine = make_engine(args)
    if engine.is_base_model and args.system:
        raise UserError("--system: a base model takes no system message; leave it out")
    sampling = Sampling(args.temperature, args.top_p, args.max_tokens, args.seed)
    if args.web:
        serve(engine, WebSettings(sampling, args.system, titles, args.host, args.port))
        return
    if engine.is_base_model:
        print_notice("Base model: it continues the text of each message, and sees no earlier messages.")
    if sys.stdin.isatty():
        print_notice("/help lists the commands, Ctrl-D quits.")
    Repl(engine, sampling, args.system).run()


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    add_model_arguments(parser)
    add_reply_arguments(parser)
    add_web_arguments(parser)
    return parser.parse_args()


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    path_help = "checkpoint folder or hub name, also of a server's model; by default the newest ckpts/instruct-*"
    group.add_argument("--model_path", help=path_help)
    cli.add_base_url_flag(group, "chat with a model on this OpenAI-compatible server")
    group.add_argument("--model", help="the server's name for the model; by default the only one it lists")
    group.add_argument("--complete", action="store_true", help="continue text, as with a base model")


def add_reply_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("replies")
    add = group.add_argument
    add("--system", default="", help="system message; empty by default")
    add("--temperature", type=parse_temperature, default=0.7, help="sampling temperature; 0 is greedy")
    add("--top_p", type=positive_fraction, default=0.95, help="nucleus sampling threshold")
    add("--max_tokens", type=positive_int, default=512, help="maximum length of a reply, in tokens")
    cli.add_seed_flag(group, "of the sampling")


def add_web_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("web page")
    add = group.add_argument
    add("--web", action="store_true", help="serve a web page")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 listens on all")
    add("--port", type=positive_int, default=7860, help="port to listen on")
    add("--articles", action="store_true", help="offer the corpus's titles as example messages")
    cli.add_corpus_flags(group)


def validate(args: argparse.Namespace) -> None:
    if args.model and (args.model_path or not args.base_url):
        raise UserError(f"--model {args.model}: names a server's model; use it with --base_url, without --model_path")
    if args.articles and not args.web:
        raise UserError("--articles: shown on the web page only; add --web")
    if args.corpus and not args.articles:
        raise UserError(f"--corpus {args.corpus}: used for the titles only; add --web --articles")


def article_titles(args: argparse.Namespace) -> list[str]:
    if not args.articles:
        return []
    task = import_corpus(args.corpus, args.strict) if args.corpus else args.task
    return [document.title for document in load_task(task)]


def make_engine(args: argparse.Namespace) -> Engine:
    """A server's model or a local checkpoint."""
    # Heavy imports, after parsing: openai or torch, not both.
    if args.base_url:
        from chat.api_engine import ApiEngine

        name = args.model or args.model_path
        engine = ApiEngine(name, args.base_url, args.complete)
        if not name:
            print_notice(f"using {engine.name}")
        return engine
    checkpoint = args.model_path or newest_instruct_checkpoint()
    from chat.local_engine import LocalEngine

    cli.silence_transformers()
    return LocalEngine(checkpoint, args.complete)


def newest_instruct_checkpoint() -> str:
    """The instruction-tuned checkpoint that finished last."""
    finished = {
        record.parent: record.stat().st_mtime_ns
        for record in paths.ckpts_dir().glob("instruct-*/run.json")
        if read_json(record, "name a checkpoint with --model_path").get("finished")
    }
    if not finished:
        raise UserError(
            f"{paths.ckpts_dir()}/instruct-*: no finished checkpoint; make one with ./scripts/train.sh "
            "--task_name instruct, or name another with --model_path"
        )
    newest = max(finished, key=finished.get)
    print_notice(f"using {newest}")
    return str(newest)


if __name__ == "__main__":
    run(main)
