"""An agent of a stack that TokenCake knows nothing of: the OpenAI SDK, a loop, and a tool, with its KV looked after.

    python -m tokencake_sglang.launch_server --model-path MODEL --enable-tokencake --port 30000
    python examples/any_stack.py --url http://127.0.0.1:30000

Three lines are TokenCake's: the agent's name on each request, the block around the tool, and the end.
"""

from __future__ import annotations

import argparse
import time

import openai

from tokencake_sglang.client import Client


def look_up(question: str) -> str:
    """Stands for a tool that takes a while."""
    time.sleep(1.0)
    return f"Three pages about {question!r}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()

    model = openai.OpenAI(base_url=given.url + "/v1", api_key=given.api_key or "none")
    agent = Client(given.url, given.api_key).agent("researcher-1", app_id="run-1", agent_type="researcher")

    messages = [{"role": "user", "content": "What should I read about KV caches?"}]
    for turn in range(given.turns):
        answer = model.chat.completions.create(
            model="default", messages=messages, max_tokens=32, extra_body=agent.extra_body)
        text = answer.choices[0].message.content or ""
        with agent.tool("search", estimate=1.0):
            found = look_up(text[:40])
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": found}]
        print(f"turn {turn + 1}: {len(text)} characters, then {found[:11]}")
    counters = agent.client.state()["counters"]
    agent.finish()
    print(f"stalls started {counters['stalls_started']}, finished {counters['stalls_finished']}")


if __name__ == "__main__":
    main()
