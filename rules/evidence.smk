# Pose control and consistency of views (not in the paper), and the ablation (Figure 3).
# Objects that the model never saw, from all sides: where the source is a renderer.
rule turntables:
    input:
        pose_eval=rules.pose_eval.output.scores,
    output:
        turntables="<results>/{dataset}/turntables/turntables.h5",
        run="<results>/{dataset}/turntables/turntables.run.json",
    log:
        "<results>/{dataset}/logs/turntables.log",
    benchmark:
        "<results>/{dataset}/benchmarks/turntables.tsv"
    priority: 10
    conda:
        "../envs/mirage.yaml"
    params:
        **step(
            "turntables",
            shape=setting("source.objects"),
            size=setting("source.size"),
            placement=setting("source.placement"),
            seed=setting("source.seed"),
            judged_objects=setting("evidence.judged_objects"),
        ),
    message:
        "{wildcards.dataset}: rendering held-out objects from all sides"
    shell:
        RUN


rule evidence:
    input:
        model=shared("training/model.safetensors"),
        config=shared("training/config.json"),
        estimator=shared("poses/pose_estimator.safetensors"),
        objects=rules.sheet.output.objects,
        crops=shared("crops/crops.h5"),
        poses=shared("poses/poses.csv"),
        counts=shared("poses/poses.json"),
        turntables=turntables,
        network=network("backbone.model"),
        judge=network("evidence.judge"),
    output:
        evidence="<results>/{dataset}/evidence/evidence.json",
        table=shown("<results>/{dataset}/evidence/evidence.txt", "Evidence"),
        picture=shown("<results>/{dataset}/evidence/evidence.png", "Evidence"),
        references="<results>/{dataset}/evidence/references.png",
        copies="<results>/{dataset}/evidence/copies.png",
        run="<results>/{dataset}/evidence/evidence.run.json",
    log:
        "<results>/{dataset}/logs/evidence.log",
    benchmark:
        "<results>/{dataset}/benchmarks/evidence.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
    params:
        **step(
            "evidence",
            run=lambda wildcards, input: str(Path(input.model).parents[1]),
            dataset=lambda wildcards: wildcards.dataset,
        ),
    message:
        "{wildcards.dataset}: pose control and consistency of views"
    shell:
        RUN


rule ablation:
    input:
        model=shared("training/model.safetensors"),
        config=shared("training/config.json"),
        estimator=shared("poses/pose_estimator.safetensors"),
        crops=shared("crops/crops.h5"),
        poses=shared("poses/poses.csv"),
        counts=shared("poses/poses.json"),
        turntables=turntables,
        network=network("backbone.model"),
        judge=network("evidence.judge"),
    output:
        ablation="<results>/{dataset}/ablation/ablation.json",
        table=shown("<results>/{dataset}/ablation/ablation.txt", "Ablation"),
        picture=shown("<results>/{dataset}/ablation/ablation.png", "Ablation"),
        run="<results>/{dataset}/ablation/ablation.run.json",
    log:
        "<results>/{dataset}/logs/ablation.log",
    benchmark:
        "<results>/{dataset}/benchmarks/ablation.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
    params:
        **step(
            "ablation",
            run=lambda wildcards, input: str(Path(input.model).parents[1]),
            dataset=lambda wildcards: wildcards.dataset,
        ),
    message:
        "{wildcards.dataset}: noise, attention and guidance varied one at a time"
    shell:
        RUN
