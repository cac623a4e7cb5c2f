# The small embedded networks. Not part of a run: weights/ has copies of the results, copied by hand
# after a check of the figures in their README.md:
#   snakemake --cores 2 stand_ins
#   cp results/stand_ins/backbone/{config.json,preprocessor_config.json,model.safetensors,README.md,evaluation.json} weights/stand-in-dinov2-cars/
#   cp results/stand_ins/sam/{model.safetensors,README.md,evaluation.json} weights/stand-in-sam-cars/


rule stand_in_scenes:
    output:
        scenes="<results>/stand_ins/scenes/scenes.h5",
        run="<results>/stand_ins/scenes/scenes.run.json",
    log:
        "<results>/stand_ins/logs/scenes.log",
    benchmark:
        "<results>/stand_ins/benchmarks/scenes.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        **step("demo.stand_ins.scenes", workers=lambda wildcards, threads: threads),
    message:
        "rendering the training images of the stand-in networks"
    shell:
        RUN


rule stand_in_backbone:
    input:
        scenes=rules.stand_in_scenes.output.scenes,
    output:
        config="<results>/stand_ins/backbone/config.json",
        preprocessor="<results>/stand_ins/backbone/preprocessor_config.json",
        weights="<results>/stand_ins/backbone/model.safetensors",
        evaluation="<results>/stand_ins/backbone/evaluation.json",
        card="<results>/stand_ins/backbone/README.md",
        run="<results>/stand_ins/backbone/backbone.run.json",
    log:
        "<results>/stand_ins/logs/backbone.log",
    benchmark:
        "<results>/stand_ins/benchmarks/backbone.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        **step("demo.stand_ins.backbone"),
    message:
        "training the stand-in for DINOv2"
    shell:
        RUN


rule stand_in_sam:
    input:
        scenes=rules.stand_in_scenes.output.scenes,
    output:
        weights="<results>/stand_ins/sam/model.safetensors",
        evaluation="<results>/stand_ins/sam/evaluation.json",
        card="<results>/stand_ins/sam/README.md",
        run="<results>/stand_ins/sam/sam.run.json",
    log:
        "<results>/stand_ins/logs/sam.log",
    benchmark:
        "<results>/stand_ins/benchmarks/sam.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        **step("demo.stand_ins.sam"),
    message:
        "training the stand-in for SAM"
    shell:
        RUN


rule stand_ins:
    input:
        rules.stand_in_backbone.output.card,
        rules.stand_in_sam.output.card,
    localrule: True
