"""An archive in Milvus, on a server or in the one file of Milvus Lite."""
