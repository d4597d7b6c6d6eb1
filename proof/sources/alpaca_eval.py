"""AlpacaEval 2.0: GPT-4 Turbo compares the responses of 58 models with those of GPT-4 Turbo itself, the reference.

An annotation has `instruction`, `dataset`, the reference's `output_1`, the model's `output_2`, and `preference`, which
is 1 plus the probability that output_2 is better. These are the models whose file is under 4 MiB at the commit.
"""

import json
import math
from pathlib import Path
from typing import Any

from proof.sources.source import Source

FILE = "results/{}/weighted_alpaca_eval_gpt4_turbo/annotations.json"
REFERENCE = "gpt4_1106_preview"
NEAREST = 1e-6  # to a probability of 0 and 1
DECIMALS = 4  # of a logit
MODELS = {
    "FuseChat-Gemma-2-9B-Instruct": "5c6e8c580d3a71035177ed5d27b78611d1efb4f3",
    "FuseChat-Llama-3.1-8B-Instruct": "56e2156c987d5daa37ee594243412cfe6b2a50df",
    "FuseChat-Llama-3.2-1B-Instruct": "39680836db236a1fd940cad50da2c10516239695",
    "FuseChat-Llama-3.2-3B-Instruct": "26265010a0f046e17c8b19806add8d7b8a609528",
    "FuseChat-Qwen-2.5-7B-Instruct": "422ed85234826aba0b5bef928ff52e6832769688",
    "Mixtral-8x7B-Instruct-v0.1_concise": "f4b214411f3d36b5a58cda2cdc782dbd6145b52f",
    "NullModel": "858149a32545d039227c4990b8b6a634bedb35e2",
    "OpenHermes-2.5-Mistral-7B": "648aa175e8e8c5a94138b70f485a35888b2e7866",
    "Qwen-14B-Chat": "1526a2607ca0647456bed3f796425324929c8a67",
    "alpaca-7b": "f60a2f8e3faf45790ed1b8f17b776c9bd62e2295",
    "alpaca-7b_concise": "8596b6dea0591f761db053c28f4afc9805bf2bbe",
    "alpaca-7b_verbose": "c002c4c08cb7b8066da855c32e4240e507da9777",
    "alpaca-farm-ppo-human": "f509847f0061a20e26f503fd68c805d98601334e",
    "alpaca-farm-ppo-sim-gpt4-20k": "9c93f3d3da83f0af38242c38d1d0973e2f7f2edb",
    "baize-v2-13b": "99848355508208561045313e61a5dc9431a868cc",
    "chatglm2-6b": "56f0438611c8e327fe7be20a972fc362de0f3b46",
    "claude": "feaf5be32cf95f233c9a076a679f2bb17ec5b6d3",
    "claude-2": "3251fa0a60b323a24cbcc2f7d8cf7593680a07b7",
    "claude-2.1": "695c1dc9d0ef4bfeed2015f24da50678347af014",
    "claude-2.1_concise": "eb295cfa8aeb7f3b048aca08ea094dbfae010dce",
    "claude-instant-1.2": "a1be0e85d430c244ec2884390b4956c95bf4145e",
    "falcon-40b-instruct": "3ac22d21b44f0c6ab23dc6e156a425da0f56f525",
    "falcon-7b-instruct": "e9f15a71e8b88ff87fd62f78c0b77da2448b21c0",
    "gemma-2b-it": "a6a90e787d722c8960aff4a5020a7830dab271bc",
    "gemma-7b-it": "40a2d0c8dcfa3da64f9c6184f302dc6c74deddbc",
    "gpt-3.5-turbo-0301": "1b35e9032da797053fa95b4cd086552e9d583d87",
    "gpt-3.5-turbo-1106": "162f2a408aeb194757559a401373eb92509d39fb",
    "gpt-3.5-turbo-1106_concise": "1ee579e1120b04d860a065a163ddf40d541c6232",
    "gpt-3.5-turbo-1106_verbose": "57a8a03e96af6b1dd31e19e975cdd66c66a11139",
    "gpt35_turbo_instruct": "577abafd4ea8788d3ca95a93af18851a968986a3",
    "gpt4_0613_concise": "3e3b952b46f44765cc1e6faa572b1b1265ea221f",
    "gpt4_1106_preview": "50f0cccbbe584b9dd3eae91079c2c6aab1864129",
    "gpt4_gamed": "ca38a736e456dd3bfc30afa03652a4b424be6109",
    "humpback-llama2-70b": "c06733f9116ed7f791ecb177a83c305bed9244de",
    "jina-chat": "8d5a569bc1d2118b077644a38bb793911609dbfd",
    "minichat-3b": "6821cf4edfa5439b5ea2b56457e74328cc8bf7b3",
    "minotaur-13b": "ba106d4c48f496cb475f604d20b909d5d056905a",
    "nous-hermes-13b": "9455b1feceaf44974cb395bc7d4a3c17999cfcc1",
    "oasst-rlhf-llama-33b": "1afd97983d415149c2baa4d15141e898487ccfda",
    "oasst-sft-llama-33b": "1ccbce663eededb5912416962f78c29fe5106e00",
    "oasst-sft-pythia-12b": "8447b13c355d18bd698d43a91b823a5761b11350",
    "openbuddy-falcon-40b-v9": "f6e8920fd23b458a35cba1db10ff8f164671fbf2",
    "openbuddy-llama-30b-v7.1": "db75531accaefaf3c4ea1f9d61db490ab6222460",
    "openbuddy-llama2-13b-v11.1": "79cb82406fd70122d88f525037b3100c35a9e65f",
    "openbuddy-llama2-70b-v10.1": "e8545667bcf70b45af12d7ecbbbac1ff51ed2af8",
    "phi-2": "f1e09eca7743d191b88b3fbe974cc2733e68a756",
    "phi-2-sft": "6b45208904914502b22be84a818d6f44448f5e0e",
    "pythia-12b-mix-sft": "21137bae5d8826adbc603cef18525500bcdbc332",
    "text_davinci_001": "ad0a91a10c632e6042c5c9d0291f751877e8d7cf",
    "text_davinci_003": "2c873074a9527f236ad3857fbe22668802a186b8",
    "ultralm-13b": "ca93d7739b83372a68c906b70faa610ae98527e1",
    "vicuna-13b": "8d9cf2575d0d9ed965ae3805c3ca475bf1d810a7",
    "vicuna-13b-v1.5": "3fb51996d2d18ce1fbd5aaf04cb8ee2bbe20bfc7",
    "vicuna-13b-v1.5-togetherai": "15078164bcec5edf7c2fa521264fd5a9759961db",
    "vicuna-7b": "7aca9ba6bbec35e87bb54a288249d35f5d94e3c3",
    "vicuna-7b-v1.3": "96e67bcc045a3dfabe6ff9179f94171e70afe397",
    "vicuna-7b-v1.5": "11ae0c9e76ebe677f63fcbd17b666e2c12502c24",
    "wizardlm-13b": "21695b0f8d76f61eb256d4481945e6bf5b4560f2",
}


def rows(checkout: Path) -> list[dict[str, Any]]:
    """One row a response, by prompt and model, with the log-odds that it is better than the reference.

    The reference's own responses stand there with a logit of 0, and again from its file, where it meets itself.
    """
    found, references = [], {}
    for model in MODELS:
        for item in json.loads((checkout / FILE.format(model)).read_text("utf-8")):
            prompt, dataset = item["instruction"], item["dataset"]
            found.append(response(prompt, model, item["output_2"], item["preference"] - 1, dataset))
            references[prompt] = response(prompt, REFERENCE, item["output_1"], 0.5, dataset)
    return sorted([*found, *references.values()], key=lambda row: (row["prompt"], row["model"]))


def response(prompt: str, model: str, text: str, probability: float, dataset: str) -> dict[str, Any]:
    within = min(max(probability, NEAREST), 1 - NEAREST)
    logit = round(math.log(within / (1 - within)), DECIMALS)
    return {"prompt": prompt, "model": model, "response": text, "gpt4_turbo_logit": logit, "dataset": dataset}


ALPACA_EVAL = Source(
    name="alpaca_eval_gpt4_turbo",
    about="47,485 responses to 805 prompts, each with GPT-4 Turbo's log-odds against one reference; no human votes",
    repository="tatsu-lab/alpaca_eval",
    commit="cd543a149df89434d8a54582c0151c0b945c3d20",
    files={FILE.format(model): blob for model, blob in MODELS.items()},
    licence="CC BY-NC 4.0 for the data, by the badge in the repository's README",
    shippable=False,
    output="responses.parquet",
    digest="012e6df0395b2aaebfa31d27dafe0970ecb9df0dd54792913213b032891207e7",
    rows=rows,
)
