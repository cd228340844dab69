# The quickstart on a CPU: docker build -t hubrl . && docker run --rm hubrl
FROM python:3.12-slim
WORKDIR /hubrl
ENV OMP_NUM_THREADS=1 PIP_NO_CACHE_DIR=1 MPLBACKEND=agg
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY hubrl hubrl
RUN pip install --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
    && pip install --constraint constraints.txt --editable ".[contrib,mujoco,plots,study,report,huggingface]"
COPY . .
CMD ["python", "-m", "agents.quickstart"]
