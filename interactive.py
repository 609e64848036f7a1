"""A conversation with a model, in the terminal or as a page.

    python interactive.py                                        # the newest instruction-tuned checkpoint
    python interactive.py --model_path ckpts/SmolLM2-135M-Instruct
    python interactive.py --base_url http://127.0.0.1:8000/v1    # vLLM, or any OpenAI-compatible server
    python interactive.py --web --articles --task example        # a page on http://127.0.0.1:7860
    echo "Tell me about the article ..." | python interactive.py

A model without a chat template continues the text that it is given. /help shows the commands.
"""

import argparse
import sys

from utils import paths
from utils.errors import UserError, run
from utils.io import read_json


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model_path",
        help="checkpoint folder or hub name; with --base_url the server's name for it (default: the newest ckpts/instruct-*)",
    )
    add("--base_url", help="an OpenAI-compatible server in place of this machine")
    add("--model", help="the server's name for the model (default: the only one that it has)")
    add("--complete", action="store_true", help="continue the text, whether the model can chat or not")
    add("--system", default="", help="system message")
    add("--temperature", default="0.7", help="0 takes the likeliest words (default 0.7)")
    add("--top_p", type=float, default=0.95, help="draw from the likeliest words that have this share (default 0.95)")
    add("--max_tokens", type=int, default=512, help="longest answer (default 512)")
    add("--seed", type=int, default=0, help="of the words that are drawn (default 0)")
    web = parser.add_argument_group("as a page")
    web.add_argument("--web", action="store_true", help="serve it to browsers")
    web.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all (default 127.0.0.1)")
    web.add_argument("--port", type=int, default=7860, help="default 7860")
    web.add_argument("--share", action="store_true", help="a public link through gradio.live, for anybody who has it")
    web.add_argument("--articles", action="store_true", help="the titles of the corpus, to click")
    web.add_argument("--task", default="quality", help="whose articles (default quality)")
    web.add_argument(
        "--corpus", metavar="DIR", help="a folder of your own documents (txt, md, jsonl, html, pdf), in place of --task"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    check(args)
    if args.corpus:
        from tasks import readers

        args.task = readers.import_corpus(args.corpus)
    titles = titles_of(args.task) if args.articles else []
    speaker = find_speaker(args)

    from chat.conversation import Sampling
    from chat.repl import Repl, print_notice

    sampling = Sampling(float(args.temperature), args.top_p, args.max_tokens, args.seed)
    if speaker.completes and args.system:
        raise UserError("--system: a model that continues text takes none")
    if args.web:
        from chat.web import serve

        serve(speaker, sampling, args.system, titles, args.host, args.port, args.share)
        return
    if speaker.completes:
        print_notice("This model continues the text it is given, answers nothing and forgets what was before.")
    if sys.stdin.isatty():
        print_notice("/help shows the commands, Ctrl-D leaves.")
    Repl(speaker, sampling, args.system).run()


def check(args: argparse.Namespace) -> None:
    from chat.repl import temperature_of

    temperature_of(args.temperature, "--temperature")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top_p {args.top_p}: above 0, at most 1")
    if args.max_tokens < 1:
        raise UserError(f"--max_tokens {args.max_tokens}: must be at least 1")
    if args.model and (args.model_path or not args.base_url):
        raise UserError("--model: a server's name for a model: with --base_url and without --model_path")
    if (args.share or args.articles) and not args.web:
        raise UserError("--share and --articles: for --web")
    if args.corpus and not args.articles:
        raise UserError("--corpus: whose titles --articles shows")


def find_speaker(args: argparse.Namespace):
    from chat.repl import print_notice

    if args.base_url:
        from chat.api_engine import ApiEngine

        name = args.model or args.model_path
        speaker = ApiEngine(name, args.base_url, args.complete)
        if not name:
            print_notice(f"taking {speaker.name}")
        return speaker
    from transformers.utils import logging

    from chat.local_engine import LocalEngine

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return LocalEngine(args.model_path or newest_tuned(), args.complete)


def newest_tuned() -> str:
    """The instruction-tuned checkpoint that was finished last."""
    from chat.repl import print_notice

    records = {
        record.parent: record.stat().st_mtime_ns
        for record in paths.ckpts_dir().glob("instruct-*/run.json")
        if read_json(record, "name a checkpoint with --model_path").get("finished")
    }
    if not records:
        raise UserError(
            f"{paths.ckpts_dir()}/instruct-*: no finished checkpoint; make one with ./scripts/train.sh "
            "--task_name instruct, or name another with --model_path"
        )
    newest = max(records, key=records.get)
    print_notice(f"taking {newest}")
    return str(newest)


def titles_of(task: str) -> list[str]:
    from tasks.documents import load_task

    return [document.title for document in load_task(task)]


if __name__ == "__main__":
    run(main)
