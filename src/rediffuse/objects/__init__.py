"""Object stores: folders in S3, Google Cloud Storage, Azure and on the Hugging Face hub, by way of local copies.

A folder is fetched file by file and verified by its manifest; what is written is staged in a local folder, and uploaded
with the manifest last. See docs/object-storage.md.
"""
