"""The side of a lead: submits jobs to a standing federation, follows them, and downloads their results.

Reading order: `profile`, `server_calls`, `packing`, `pack_upload`, `file_download`, `log_reader`, `round_reader`,
`submitted_job`, `connection`; texts: `job_sheet`, `job_report`. gRPC and the certificates are imported with the first
connection.
"""
