# Published networks, each fetched once into one folder that projects may share.
# On the machine where Snakemake runs: a cluster's nodes often have no network.
rule weights:
    output:
        run="<weights>/runs/{network}/weights.run.json",
    log:
        "<weights>/runs/{network}/weights.log",
    # First of all: what cannot be fetched shows at once.
    priority: 20
    localrule: True
    conda:
        "../envs/mirage.yaml"
    resources:
        setting=asked_by,
    params:
        weights=lambda wildcards: configuration.weights,
        out=subpath(output.run, parent=True),
    message:
        "fetching {wildcards.network}"
    shell:
        "python -m mirage_steps.weights --network {wildcards.network:q}"
        " --setting {resources.setting} --weights {params.weights:q} --out {params.out:q}"
        " 2>&1 | (trap '' INT TERM; exec tee {log:q})"
