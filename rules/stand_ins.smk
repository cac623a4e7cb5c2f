# The small embedded networks of every kind of object. Not part of a run: weights/ has copies of the
# results, copied by hand after a check of the figures in their README.md:
#   snakemake --cores 2 results/stand_ins/mugs/{backbone,sam}/README.md
#   cp results/stand_ins/mugs/backbone/{config.json,preprocessor_config.json,model.safetensors,README.md,evaluation.json} weights/stand-in-dinov2-mugs/
#   cp results/stand_ins/mugs/sam/{model.safetensors,README.md,evaluation.json} weights/stand-in-sam-mugs/
# The number of scenes that they learn from, by kind.
STAND_IN_SCENES = {"cars": 20_000, "mugs": 12_000}


wildcard_constraints:
    kind="|".join(STAND_IN_SCENES),


rule stand_in_scenes:
    output:
        scenes="<results>/stand_ins/{kind}/scenes/scenes.h5",
        run="<results>/stand_ins/{kind}/scenes/scenes.run.json",
    log:
        "<results>/stand_ins/{kind}/logs/scenes.log",
    benchmark:
        "<results>/stand_ins/{kind}/benchmarks/scenes.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        **step(
            "demo.stand_ins.scenes",
            kind=lambda wildcards: wildcards.kind,
            scenes=lambda wildcards: STAND_IN_SCENES[wildcards.kind],
            workers=lambda wildcards, threads: threads,
        ),
    message:
        "rendering the training images of the stand-in networks for {wildcards.kind}"
    shell:
        RUN


rule stand_in_backbone:
    input:
        scenes=rules.stand_in_scenes.output.scenes,
    output:
        config="<results>/stand_ins/{kind}/backbone/config.json",
        preprocessor="<results>/stand_ins/{kind}/backbone/preprocessor_config.json",
        weights="<results>/stand_ins/{kind}/backbone/model.safetensors",
        evaluation="<results>/stand_ins/{kind}/backbone/evaluation.json",
        card="<results>/stand_ins/{kind}/backbone/README.md",
        run="<results>/stand_ins/{kind}/backbone/backbone.run.json",
    log:
        "<results>/stand_ins/{kind}/logs/backbone.log",
    benchmark:
        "<results>/stand_ins/{kind}/benchmarks/backbone.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        **step("demo.stand_ins.backbone"),
    message:
        "training the stand-in for DINOv2, for {wildcards.kind}"
    shell:
        RUN


rule stand_in_sam:
    input:
        scenes=rules.stand_in_scenes.output.scenes,
    output:
        weights="<results>/stand_ins/{kind}/sam/model.safetensors",
        evaluation="<results>/stand_ins/{kind}/sam/evaluation.json",
        card="<results>/stand_ins/{kind}/sam/README.md",
        run="<results>/stand_ins/{kind}/sam/sam.run.json",
    log:
        "<results>/stand_ins/{kind}/logs/sam.log",
    benchmark:
        "<results>/stand_ins/{kind}/benchmarks/sam.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        **step("demo.stand_ins.sam"),
    message:
        "training the stand-in for SAM, for {wildcards.kind}"
    shell:
        RUN


rule stand_ins:
    input:
        expand(rules.stand_in_backbone.output.card, kind=STAND_IN_SCENES),
        expand(rules.stand_in_sam.output.card, kind=STAND_IN_SCENES),
    localrule: True
