# A served judge: on a CPU as it is, on a GPU with three build arguments. docs/serve.md has the commands.
FROM python:3.11-slim-bookworm
ARG REQUIREMENTS=requirements/cpu.txt
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG ALLOW_CUDA=

# libnuma and libgomp: vLLM on CPUs; gcc: the kernels that Triton compiles when it starts on a GPU
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /judge
COPY pyproject.toml LICENSE ./
COPY requirements requirements
COPY teachers/plugin teachers/plugin
RUN REQUIREMENTS=$REQUIREMENTS TORCH_INDEX=$TORCH_INDEX ALLOW_CUDA=$ALLOW_CUDA PIP_NO_CACHE_DIR=1 bash requirements/setup.sh
COPY conf conf
COPY core core
COPY teachers teachers
COPY students students
COPY eval eval
COPY deploy deploy
COPY distill distill

RUN useradd --create-home --uid 1000 judge && mkdir /data && chown judge /data
USER judge
ENV PATH=/judge/.venv/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 8080
HEALTHCHECK --start-period=10m --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "distill.serve", "serve.model=/export", "serve.host=0.0.0.0", "paths.root=/data"]
CMD ["serve.api_key_variable=JUDGE_API_KEY"]
