# The pose-conditioned diffusion model (paper, section 3.2).
rule train:
    input:
        crops=own("crops/crops.h5"),
        poses=own("poses/poses.csv"),
        counts=own("poses/poses.json"),
        # Other poses change the tables, too.
        estimator=ancient(own("poses/pose_estimator.safetensors")),
        network=network("backbone.model"),
        pretrained=network("training.pretrained"),
    output:
        model="<results>/{dataset}/training/model.safetensors",
        config="<results>/{dataset}/training/config.json",
        loss=shown("<results>/{dataset}/training/loss.png", "Training"),
        run="<results>/{dataset}/training/train.run.json",
    log:
        "<results>/{dataset}/logs/train.log",
    benchmark:
        "<results>/{dataset}/benchmarks/train.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=setting("training.processes"),
        accelerator=setting("training.processes"),
        # torchrun joins the cards of one machine; SLURM would take them from several.
        nodes=1,
    params:
        # The checkpoint folder is not a declared output: Snakemake deletes outputs of a failed job, and
        # checkpoints must survive it. Without a scheduler there is no time limit.
        **step(
            "train",
            code=version("train"),
            checkpoints=lambda wildcards, output: f"{Path(output.model).parent}/checkpoints",
            runtime=lambda wildcards, resources: resources.get("runtime", 0),
        ),
    message:
        "{wildcards.dataset}: training; live metrics in training/checkpoints/metrics.jsonl"
    shell:
        RUN


# What others need to show photos by the model; the cameras too, if they were made before.
rule export:
    input:
        model=own("training/model.safetensors"),
        config=own("training/config.json"),
        sampling=own("training/sampling.json"),
        estimator=own("poses/pose_estimator.safetensors"),
        names=own("poses/names.json"),
        poses=own("poses/poses.csv"),
        evidence=own("evidence/evidence.txt"),
    output:
        model="<results>/{dataset}/export/training/model.safetensors",
        config="<results>/{dataset}/export/training/config.json",
        sampling="<results>/{dataset}/export/training/sampling.json",
        estimator="<results>/{dataset}/export/poses/pose_estimator.safetensors",
        names="<results>/{dataset}/export/poses/names.json",
        card="<results>/{dataset}/export/README.md",
        run="<results>/{dataset}/export/export.run.json",
    log:
        "<results>/{dataset}/logs/export.log",
    benchmark:
        "<results>/{dataset}/benchmarks/export.tsv"
    conda:
        "../envs/mirage.yaml"
    params:
        **step("export", trained=lambda wildcards, input: str(Path(input.model).parents[1])),
        cameras=there("cameras/cameras.json"),
    message:
        "{wildcards.dataset}: exporting the model"
    shell:
        RUN


# The embedded model of rendered cars: hours of training, not part of any run. weights/showcase-cars has
# a copy, made by hand after a look at its evidence:
#   snakemake --cores 2 results/showcase/cameras/cameras.json
#   snakemake --cores 2 showcase
#   mkdir -p weights/showcase-cars
#   cp -r results/showcase/export/{README.md,poses,training,cameras} weights/showcase-cars/
rule showcase:
    input:
        expand(rules.export.output.card, dataset="showcase"),
    localrule: True
