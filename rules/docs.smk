# The README's pictures, copied from the demo that made them: snakemake --cores 2 pictures
PICTURES = {
    "contact_sheet.png": "sheet/contact_sheet.png",
    "turn.gif": "sheet/turn.gif",
    "foreground.png": "foreground/foreground.png",
    "poses.png": "poses/poses.png",
    "masks.png": "sets/mv-nobg-hag/masks.png",
    "photo.png": "novel_views/green.png",
}


rule pictures:
    input:
        [f"<results>/demo/{path}" for path in PICTURES.values()],
    output:
        expand("docs/pictures/{name}", name=PICTURES),
    log:
        "<results>/demo/logs/pictures.log",
    localrule: True
    conda:
        "../envs/mirage.yaml"
    shell:
        "cp {input:q} docs/pictures/ 2> {log:q}"
