# Background removal, features of all sets, the metrics table (paper, section 4).
# Before the training if possible: a missing network fails early.
rule masks:
    input:
        images=unmasked,
        estimator=shared("foreground/pose_estimator.safetensors"),
        network=network("backbone.model"),
        sam=network("masks.sam"),
    output:
        # Shards have no summary.
        **(
            {}
            if SHARD
            else {
                "picture": shown("<results>/{dataset}/sets/{set}/masks.png", "Generated images"),
                "summary": "<results>/{dataset}/sets/{set}/masks.json",
            }
        ),
        images=sharded("<results>/{dataset}/sets/{set}/images.h5", kept=True),
        run=record("<results>/{dataset}/sets/{set}/masks"),
    log:
        f"<results>/{{dataset}}/logs/masks-{{set}}{SHARD}.log",
    benchmark:
        f"<results>/{{dataset}}/benchmarks/masks-{{set}}{SHARD}.tsv"
    wildcard_constraints:
        set=names("masked"),
    priority: 10
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
    params:
        **step("masks", shard=shard),
    message:
        "{wildcards.dataset}: removing the background, {wildcards.set}"
    shell:
        RUN


# Before the training if possible: a missing network fails early.
rule embed:
    input:
        images="<results>/{dataset}/sets/{set}/images.h5",
        network=network("backbone.model"),
        inception=network("embed.inception"),
    output:
        features="<results>/{dataset}/sets/{set}/features.h5",
        run="<results>/{dataset}/sets/{set}/embed.run.json",
    log:
        "<results>/{dataset}/logs/embed-{set}.log",
    benchmark:
        "<results>/{dataset}/benchmarks/embed-{set}.tsv"
    priority: 10
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
    params:
        **step("embed"),
    message:
        "{wildcards.dataset}: features of {wildcards.set}"
    shell:
        RUN


rule fid:
    input:
        unpack(features_of_rows),
        # For photos later. No set depends on it, or a setting of photos would make all sets stale.
        sampling=own_sampling,
    output:
        table=shown(ensure("<results>/{dataset}/fid.txt", non_empty=True), "Distances"),
        metrics="<results>/{dataset}/metrics.json",
        run="<results>/{dataset}/fid.run.json",
    log:
        "<results>/{dataset}/logs/fid.log",
    benchmark:
        "<results>/{dataset}/benchmarks/fid.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        **step(
            "fid",
            row=rows,
            paper=published_fid,
            paper_source=lambda wildcards: getattr(dataset(wildcards).paper, "source", None),
            differs=deviations,
            dataset=lambda wildcards: wildcards.dataset,
        ),
        declared=declared_rows,
    message:
        "{wildcards.dataset}: the metrics table (FID, KID)"
    shell:
        RUN


# Of a run that is not finished: python -m mirage_steps.report
rule report:
    input:
        reported,
    output:
        page=shown("<results>/{dataset}/report.html", "Report"),
        run="<results>/{dataset}/report.run.json",
    log:
        "<results>/{dataset}/logs/report.log",
    benchmark:
        "<results>/{dataset}/benchmarks/report.tsv"
    conda:
        "../envs/mirage.yaml"
    params:
        **step(
            "report",
            run=lambda wildcards, output: str(Path(output.page).parent),
            left_out=photos_left_out,
        ),
        meshes=there("meshes/**/*.glb", "novel_views/**/*.glb"),
    message:
        "{wildcards.dataset}: the report"
    shell:
        RUN


rule overview:
    input:
        report=rules.report.output.page,
        table=rules.fid.output.table,
        evidence=rules.evidence.output.table,
        ablation=rules.ablation.output.table,
        screening=shared("screening/screening.txt"),
        pictures=pictures,
        photos=photo_strips,
    output:
        overview="<results>/{dataset}/overview.txt",
    log:
        "<results>/{dataset}/logs/overview.log",
    localrule: True
    conda:
        "../envs/mirage.yaml"
    params:
        left_out=photos_left_out,
        strips=strips_listed,
    message:
        "{wildcards.dataset}: overview, the table and the list of pictures"
    shell:
        "(cat {input.table:q}; echo; cat {input.evidence:q}; echo; cat {input.ablation:q}; echo;"
        " cat {input.screening:q}; echo; echo Report: {input.report:q}; echo;"
        " echo Pictures:; printf '  %s\\n' {input.pictures:q} {params.strips:q};"
        ' for line in {params.left_out:q}; do printf "  left out: %s\\n" "$line"; done)'
        " > {output.overview:q} 2> {log:q}"
