# The pose-conditioned diffusion model (paper, section 3.2).
from mirage_steps.files.code_hash import version


rule train:
    input:
        crops=own_model("crops/crops.h5"),
        poses=own_model("poses/poses.csv"),
        counts=own_model("poses/poses.json"),
    output:
        weights="<results>/{dataset}/training/model.safetensors",
        config="<results>/{dataset}/training/config.json",
        loss="<results>/{dataset}/training/loss.png",
        run="<results>/{dataset}/training/train.run.json",
    log:
        "<results>/{dataset}/logs/train.log",
    benchmark:
        "<results>/{dataset}/benchmarks/train.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=setting("training", "processes"),
        accelerator=setting("training", "processes"),
        processes=setting("training", "processes"),
        accumulation=setting("training", "accumulation"),
        launcher=launcher,
        log_every=setting("training", "log_every"),
        checkpoint_every=setting("training", "checkpoint_every"),
        sample_every=setting("training", "sample_every"),
    params:
        training=section("training"),
        out=subpath(output.weights, parent=True),
        code=version("train"),
        # A function of the resources makes nothing stale. Without a scheduler there is no limit.
        runtime=lambda wildcards, resources: resources.get("runtime", 0),
    message:
        "{wildcards.dataset}: training; live figures in {params.out}/checkpoints/metrics.jsonl"
    # The checkpoints' folder is no declared output: Snakemake removes those of a failed job, and
    # checkpoints must survive it.
    shell:
        "{resources.launcher} -m mirage_steps.train --crops {input.crops:q} --poses {input.poses:q}"
        " --out {params.out:q} --checkpoints {params.out:q}/checkpoints {params.training}"
        " --log-every {resources.log_every} --sample-every {resources.sample_every}"
        " --checkpoint-every {resources.checkpoint_every} --processes {resources.processes}"
        " --accumulation {resources.accumulation} --runtime {params.runtime}"
        " 2>&1 | (trap '' INT TERM; exec tee {log:q})"
