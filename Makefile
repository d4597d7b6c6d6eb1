# Every target runs one command that can be typed by hand; `make help` lists them.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
EXP ?= demo
ARGS ?=
TEACHER_EXP ?= demo_teacher
export TORCH_INDEX ALLOW_CUDA PYTHON VENV REQUIREMENTS

.DEFAULT_GOAL := help
# setup.sh writes the file last: without it the environment is not there, or not complete.
ifneq ($(filter-out help setup clean,$(or $(MAKECMDGOALS),help)),)
ifeq ($(filter setup,$(MAKECMDGOALS))$(wildcard $(VENV)/.installed),)
$(error run make setup first: there is no complete $(VENV))
endif
endif
.PHONY: help setup status plan data teacher teacher-logits student student-no-teacher export eval export-eval demo demo-teacher demo-seeds human in-fold ablation averages proof predict serve try test test-long test-all test-gpu-pins checks format bench gpu-check clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 22
	@echo; echo "  EXP=$(EXP) chooses the experiment, ARGS='seed=1 ...' overrides single keys: see conf/, whose files say where keys are explained"

setup: ## Make .venv from requirements/cpu.txt with Python 3.11 to 3.13, GPU or not; stopped, it goes on where it was
	bash requirements/setup.sh

status: ## How far EXP is: each stage done, stale, running or missing, what came out, and the next command
	$(PY) -m distill.status +exp=$(EXP) $(ARGS)

plan: ## Memory, hours and cost of every stage of EXP, before anything is rented (ARGS='plan=h100 plan.gpus=16')
	$(PY) -m distill.plan +exp=$(EXP) $(ARGS)

data: ## Conversations with a test split and folds
	$(PY) -m distill.prepare +exp=$(EXP) $(ARGS)

teacher: ## Fine-tune a teacher on votes (TEACHER_EXP)
	$(PY) -m distill.student +exp=$(TEACHER_EXP) $(ARGS)

teacher-logits: ## Score the conversations with the teacher through vLLM, both orders
	$(PY) -m distill.teacher +exp=$(EXP) $(ARGS)

student: ## Distil the student
	$(PY) -m distill.student +exp=$(EXP) $(ARGS)

student-no-teacher: ## The same student on votes alone, for comparison
	$(PY) -m distill.student +exp=$(EXP) loss=votes $(ARGS)

export: ## Merge and quantise the student, and check what that cost
	$(PY) -m distill.export +exp=$(EXP) $(ARGS)

eval: ## Compare all judges on the test split; table and report.html
	$(PY) -m eval +exp=$(EXP) $(ARGS)

export-eval: ## export, then eval: an export that failed its checks is reported all the same, and the exit code is still 1
	$(PY) -m distill.export +exp=$(EXP) $(ARGS); made=$$?; [ $$made -le 1 ] || exit $$made; \
	$(PY) -m eval +exp=$(EXP) $(ARGS) && exit $$made

demo: ## The whole path on two CPU cores, with real models; resumes where it stopped
	@echo "demo: distil a judge for a simulated arena, whose true distribution is known. About $(DEMO_MINUTES) minutes on two cores."
	@echo "      Stop it at any time; make demo goes on. What libraries say: artifacts/logs"
	@$(call step,1/5,make data: conversations with a test split and folds,5 s)
	@$(MAKE) -s data EXP=demo
	@$(call step,2/5,make teacher-logits: a teacher of 135M parameters scores them in both orders by vLLM,2 min 40 s)
	@$(MAKE) -s teacher-logits EXP=demo
	@$(call step,3/5,make student student-no-teacher: two students of its first six layers side by side,1 min 45 s)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(HALF_OF_CORES)} $(MAKE) -s -j2 student-no-teacher student EXP=demo
	@$(call step,4/5 and 5/5,make export eval: quantise the student and check it; compare all judges on the test split,1 min 30 s)
	@$(MAKE) -s export-eval EXP=demo
DEMO_MINUTES := 6
HALF_OF_CORES := $(shell echo $$(( ($$(nproc) + 1) / 2 )))
step = echo "== $(1) $(2) (about $(3))"

demo-teacher: ## Rebuild the shipped demo teacher in teachers/demo (most of an hour)
	$(MAKE) data EXP=demo_teacher
	$(MAKE) teacher TEACHER_EXP=demo_teacher
	rm -rf teachers/.demo && mkdir teachers/.demo && cp -r artifacts/teachers/demo_teacher/fold=0 teachers/.demo/
	rm -rf teachers/.demo/fold=0/{checkpoints,wandb,tensorboard} teachers/demo && mv teachers/.demo teachers/demo

demo-seeds: ## What distillation gains on the demo data over three training seeds (about 8 minutes after make demo)
	$(PY) -m distill.student -m +exp=demo seed=1,2
	$(PY) -m distill.student -m +exp=demo seed=1,2 loss=votes
	$(PY) -m eval +exp=demo 'eval.seeds=[0,1,2]'

human: ## The whole path on real human votes (over an hour)
	$(MAKE) data EXP=human
	$(PY) -m distill.student -m +exp=human_teacher fold=0,1,2 $(ARGS)
	$(MAKE) teacher-logits student-no-teacher student export-eval EXP=human

in-fold: ## In-fold against out-of-fold targets on the same real votes, three seeds (half an hour after make human)
	$(PY) -m distill.teacher +exp=human teacher.rows=in_fold
	$(PY) -m distill.student -m +exp=human seed=1,2
	$(PY) -m distill.student +exp=human teacher.rows=in_fold
	$(PY) -m distill.student -m +exp=human seed=1,2 teacher.rows=in_fold
	$(PY) -m eval +exp=human 'eval.seeds=[0,1,2]' 'eval.variants=["teacher.rows=in_fold"]'

averages: ## Five folds on real votes, averaged three ways (half an hour after make human)
	$(MAKE) data EXP=human5
	$(PY) -m distill.student -m +exp=human5 fold=0,1,2,3,4
	$(MAKE) export EXP=human5

proof: ## Students of GPT-4 Turbo's opinions, soft and hard, and judges of human votes, three seeds (many hours; it goes on where it was stopped)
	$(PY) -m proof.subset $(RESPONSES) artifacts/proof/alpaca_eval.parquet
	$(MAKE) data teacher-logits EXP=proof_gpt4
	$(call three_seeds,proof_gpt4,name=proof_gpt4_1k,limit=1700,loss=votes)
	$(call three_seeds,proof_gpt4,name=proof_gpt4_4k,limit=6700,loss=votes)
	$(call three_seeds,proof_gpt4,,,loss=votes)
	$(call kept,rankings,proof.rankings --data artifacts/data/alpaca_eval --logits artifacts/logits/gpt4_turbo artifacts/eval/proof_gpt4*)
	$(call kept,length_gpt4,proof.length --data artifacts/data/alpaca_eval --teacher artifacts/logits/gpt4_turbo artifacts/eval/proof_gpt4)
	$(call kept,mixture_gpt4,proof.mixture --data artifacts/data/alpaca_eval --teacher artifacts/logits/gpt4_turbo artifacts/eval/proof_gpt4 surface student)
	$(call kept,formats,bench.formats --data artifacts/data/alpaca_eval $(addprefix artifacts/exports/proof_gpt4/,merged w8a8 w8a16))
	$(MAKE) data EXP=proof_human
	$(PY) -m proof.scores --data artifacts/data/human $(GPT4_STUDENT) artifacts/proof/scores.parquet
	$(PY) -m distill.teacher +exp=proof_human teacher=stored teacher.name=gpt4_student teacher.stored.file=artifacts/proof/scores.parquet teacher.stored.learned_from=none
	$(call three_seeds,proof_human,,,model.base=$(GPT4_STUDENT),+eval.judges.gpt4_student=artifacts/logits/gpt4_student '+eval.judges.two_stage="$(TWO_STAGE)"')
	$(call kept,mixture,proof.mixture --data artifacts/data/human artifacts/eval/proof_human surface student gpt4_student two_stage)
	$(call kept,mixture_unseen,proof.mixture --data artifacts/data/human --without artifacts/data/alpaca_eval artifacts/eval/proof_human surface student gpt4_student two_stage)
	$(call kept,length_human,proof.length --data artifacts/data/human artifacts/eval/proof_human)
	$(PY) -m proof.figures artifacts docs/images

# What a script prints, kept for proof.figures: name, command
kept = set -o pipefail; $(PY) -m $(2) | tee artifacts/proof/$(1).txt
RESPONSES = $(or $(PUBLIC_DATA),../shared/data)/alpaca_eval_gpt4_turbo/responses.parquet
comma = ,
GPT4_STUDENT = artifacts/exports/proof_gpt4/merged
TWO_STAGE = artifacts/students/proof_human$(comma)model.base=artifacts+exports+proof_gpt4+merged-33dfcd13/fold=0

# An experiment beside a variant of it: experiment, name, limit of training (those without one are exported), the
# variant's override, other judges
define three_seeds
	$(PY) -m distill.student +exp=$(1) $(2) $(3)
	$(PY) -m distill.student +exp=$(1) $(2) $(3) $(4)
	$(PY) -m distill.student -m +exp=$(1) $(2) $(3) seed=1,2
	$(PY) -m distill.student -m +exp=$(1) $(2) $(3) seed=1,2 $(4)
	$(if $(3),,$(PY) -m distill.export -m +exp=$(1) export.format=merged$(comma)w8a8$(comma)w8a16)
	$(PY) -m eval +exp=$(1) $(2) $(5) 'eval.seeds=[0,1,2]' 'eval.variants=["$(4)"]'
endef

predict: ## Probabilities for a file without votes (ARGS='input=test.csv output=submission.csv')
	$(PY) -m distill.predict +exp=$(EXP) $(ARGS)

serve: ## The exported judge as an HTTP API and a page, on http://127.0.0.1:8080
	$(PY) -m distill.serve +exp=$(EXP) $(ARGS)

try: ## The judge in judges/human with its page, on http://127.0.0.1:8080: no training, no download
	$(PY) -m distill.serve serve.model=judges/human scorer@scorers.exported=transformers $(ARGS)

test: ## The tests of every promise, on all cores (ARGS='tests/core -x' chooses)
	$(TEST) -m "not long" $(ARGS)

test-long: ## The rest: many kills, every engine and format, browsers, Ray
	$(TEST) -m long $(ARGS)

test-all: test test-long ## Both

TEST = $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations 30

test-gpu-pins: ## What we take for granted of the GPU build of vLLM, read from its wheel (downloads it and Triton, about a gigabyte)
	$(PY) -m pytest tests/gpu_pins.py $(ARGS)

checks: ## Format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: ## Rewrite the code in the project's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: ## Side-by-side measurements; each prints one JSON line last
	$(PY) -m bench.prepare
	$(PY) -m bench.store
	$(PY) -m bench.teacher
	$(PY) -m bench.student
	$(PY) -m bench.export
	$(PY) -m bench.eval
	$(PY) -m bench.serve

gpu-check: ## On a GPU: check what no CPU can show, and measure what distill.plan assumes; DRY=1: what a CPU can, with tiny models
	$(PY) -m gpu_check $(if $(DRY),--dry) $(ARGS)

ablation: ## Losses against each other on real votes, three seeds (an hour and a half after make human)
	for loss in votes distill kl blackpearl wsdm3; do $(PY) -m distill.student +exp=human loss=$$loss && \
	    $(PY) -m distill.student -m +exp=human seed=1,2 loss=$$loss || exit $$?; done
	$(PY) -m distill.student -m +exp=human role=teacher name=human_self fold=0,1,2
	$(PY) -m distill.teacher +exp=human teacher.name=human_self
	$(PY) -m distill.student +exp=human loss=distill teacher.name=human_self
	$(PY) -m distill.student -m +exp=human seed=1,2 loss=distill teacher.name=human_self
	$(PY) -m eval +exp=human loss=votes 'eval.seeds=[0,1,2]' \
	    'eval.variants=["loss=distill","loss=kl","loss=blackpearl","loss=wsdm3","loss=distill,teacher.name=human_self"]'

clean: ## Remove caches; artifacts stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache
