"""From the file a user has to a prepared folder (pdserve/prepared.py), and from there to tensors.

    resolve.py            what a model argument means: a name, a folder, a file
    hub.py                an id on the Hugging Face hub, fetched
    families.py           which model families are read, and what tells them apart
    hf_*.py               Hugging Face folders       gguf_*.py    GGUF files
    checkpoint.py         what both become: config, text part, source of tensors
    tensor_plan.py        which source tensors make up which prepared tensor
    fused_projections.py  the same for checkpoints that store some of them stacked
    prepare.py cache.py   the conversion and where its result is kept
    weights.py            the prepared tensors, mapped (the only module here that needs torch)

It does not know how a model is computed.
"""
