# The documents' pictures of the demo, copied from it: snakemake --cores 2 pictures. Those of the embedded
# model are made by hand.
PICTURES = {
    "turntable.gif": "sheet/turntable.gif",
    "foreground.png": "foreground/foreground.png",
    "poses.png": "poses/poses.png",
    "masks.png": "sets/mv-nobg-hag/masks.png",
    "evidence.png": "evidence/evidence.png",
    "truth.png": "evidence/truth.png",
    "copies.png": "evidence/copies.png",
}


rule picture:
    input:
        lambda wildcards: f"<results>/demo/{PICTURES[wildcards.picture]}",
    output:
        "docs/pictures/{picture}",
    log:
        "<results>/demo/logs/pictures/{picture}.log",
    wildcard_constraints:
        picture="|".join(map(re.escape, PICTURES)),
    localrule: True
    conda:
        "../envs/mirage.yaml"
    shell:
        "cp {input:q} {output:q} 2> {log:q}"


rule pictures:
    input:
        expand("docs/pictures/{picture}", picture=PICTURES),
    localrule: True
