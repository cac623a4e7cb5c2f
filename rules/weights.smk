# Published networks, each fetched once into one folder that projects may share.
# On the machine where Snakemake runs: a cluster's nodes often have no network.
rule weights:
    output:
        run="<results>/weights/{network}/weights.run.json",
    log:
        "<results>/weights/{network}/weights.log",
    # First of all: what cannot be fetched shows at once.
    priority: 20
    localrule: True
    conda:
        "../envs/mirage.yaml"
    resources:
        setting=asked_by,
        weights=shlex.quote(configuration.weights),
    params:
        out=subpath(output.run, parent=True),
        # Changes when a network was deleted after it had been fetched.
        state=network_state,
    message:
        "fetching {wildcards.network}"
    shell:
        "python -m mirage_steps.weights --network {wildcards.network:q}"
        " --setting {resources.setting} --weights {resources.weights} --out {params.out:q}"
        " 2>&1 | (trap '' INT TERM; exec tee {log:q})"
