# Generated and real sets of images (paper, section 3.3).
# Before the training: too few images for the table show at once.
rule real:
    input:
        crops=rules.crops.output.crops,
        poses=rules.poses.output.poses,
    output:
        a="<results>/{dataset}/sets/real-a/images.h5",
        b="<results>/{dataset}/sets/real-b/images.h5",
        run="<results>/{dataset}/sets/real.run.json",
    log:
        "<results>/{dataset}/logs/real.log",
    priority: 10
    conda:
        "../envs/mirage.yaml"
    params:
        fid=section("fid"),
        out=subpath(output.a, ancestor=2),
        code=code_hash("real"),
    message:
        "{wildcards.dataset}: two disjoint sets of real images"
    shell:
        "python -m mirage_steps.real --crops {input.crops:q} --poses {input.poses:q}"
        " --out {params.out:q} {params.fid} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule views:
    input:
        model=rules.train.output.weights,
        config=rules.train.output.config,
        poses=rules.poses.output.poses,
        counts=rules.poses.output.counts,
    output:
        # Of the parts there is no picture.
        **({} if PART else {"picture": "<results>/{dataset}/sets/{kind}/images.png"}),
        images=part("<results>/{dataset}/sets/{kind}/images.h5"),
        run=part_record("<results>/{dataset}/sets/{kind}/views"),
    log:
        f"<results>/{{dataset}}/logs/views-{{kind}}{PART}.log",
    benchmark:
        f"<results>/{{dataset}}/benchmarks/views-{{kind}}{PART}.tsv"
    wildcard_constraints:
        kind="|".join(GENERATED),
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
        batch_size=setting("views", "batch_size"),
    params:
        views=section("views"),
        gamma=gamma,
        samples=setting("fid", "samples"),
        shard=shard,
        out=subpath(output.images, parent=True),
        code=code_hash("views"),
    message:
        "{wildcards.dataset}: generating {wildcards.kind}"
    shell:
        "python -m mirage_steps.views --model {input.model:q} --poses {input.poses:q}"
        " --out {params.out:q} --kind {wildcards.kind} --samples {params.samples}"
        " --gamma {params.gamma} {params.views} --batch-size {resources.batch_size}"
        " --shard {params.shard} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule sheet:
    input:
        model=rules.train.output.weights,
        config=rules.train.output.config,
    output:
        sheet="<results>/{dataset}/sheet/contact_sheet.png",
        turn="<results>/{dataset}/sheet/turn.gif",
        run="<results>/{dataset}/sheet/sheet.run.json",
    log:
        "<results>/{dataset}/logs/sheet.log",
    benchmark:
        "<results>/{dataset}/benchmarks/sheet.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
        batch_size=setting("views", "batch_size"),
    params:
        words=section("sheet", "views", "guidance"),
        out=subpath(output.sheet, parent=True),
        code=code_hash("sheet"),
    message:
        "{wildcards.dataset}: contact sheet and turn"
    shell:
        "python -m mirage_steps.sheet --model {input.model:q} --out {params.out:q} {params.words}"
        " --batch-size {resources.batch_size}"
        " 2>&1 | (trap '' INT TERM; exec tee {log:q})"


# Photos of a data set that uses the model of another one.
rule turn:
    input:
        model=stored("training/model.safetensors"),
        config=stored("training/config.json"),
        crops=rules.crops.output.crops,
        poses=rules.poses.output.poses,
        counts=rules.poses.output.counts,
        scores=rules.pose_eval.output.scores,
    output:
        sheet="<results>/{dataset}/turned/contact_sheet.png",
        turn="<results>/{dataset}/turned/turn.gif",
        photos="<results>/{dataset}/turned/turned.json",
        run="<results>/{dataset}/turned/turn.run.json",
    log:
        "<results>/{dataset}/logs/turn.log",
    benchmark:
        "<results>/{dataset}/benchmarks/turn.tsv"
    wildcard_constraints:
        dataset="|".join(map(re.escape, TURNED)) or "(?!)",
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
        batch_size=setting("views", "batch_size"),
    params:
        sheet=lambda wildcards: shlex.join(flags(dataset_settings(wildcards).sheet)),
        words=section("views", "guidance", "novel_views"),
        out=subpath(output.sheet, parent=True),
        code=code_hash("turn"),
    message:
        "{wildcards.dataset}: photos from all sides"
    shell:
        "python -m mirage_steps.turn --model {input.model:q} --crops {input.crops:q}"
        " --poses {input.poses:q} --out {params.out:q} {params.sheet} {params.words}"
        " --batch-size {resources.batch_size} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


# A photo of the folder `photos`.
rule novel_views:
    input:
        photo=photo,
        run=stored_run,
        weights=weights("backbone", "model"),
    output:
        strip="<results>/{dataset}/novel_views/{name}.png",
        turn="<results>/{dataset}/novel_views/{name}.gif",
        about="<results>/{dataset}/novel_views/{name}.json",
        views=directory("<results>/{dataset}/novel_views/{name}.views"),
        run="<results>/{dataset}/novel_views/{name}.run.json",
    log:
        "<results>/{dataset}/logs/novel_views/{name}.log",
    benchmark:
        "<results>/{dataset}/benchmarks/novel_views/{name}.tsv"
    wildcard_constraints:
        name=r".+(?<!\.run)(?<!\.views)",
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
        batch_size=setting("views", "batch_size"),
    params:
        words=section("views", "guidance", "novel_views"),
        run=used_run,
        out=subpath(output.strip, parent=True),
        name=subpath(output.strip, basename=True, strip_suffix=".png"),
        code=code_hash("novel_views"),
    message:
        "{wildcards.dataset}: {wildcards.name} from all sides"
    shell:
        "python -m mirage_steps.novel_views {input.photo:q} --run {params.run:q} --out {params.out:q}"
        " --name={params.name:q} {params.words} --batch-size {resources.batch_size}"
        " 2>&1 | (trap '' INT TERM; exec tee {log:q})"
