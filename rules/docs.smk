# The README's pictures, copied from the demo that made them: snakemake --cores 2 pictures
PICTURES = {
    "contact_sheet.png": "sheet/contact_sheet.png",
    "turntable.gif": "sheet/turntable.gif",
    "foreground.png": "foreground/foreground.png",
    "poses.png": "poses/poses.png",
    "masks.png": "sets/mv-nobg-hag/masks.png",
    "photo.png": "novel_views/green.png",
    "evidence.png": "evidence/evidence.png",
    "truth.png": "evidence/truth.png",
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
