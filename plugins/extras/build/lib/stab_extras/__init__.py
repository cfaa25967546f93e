"""More stabilizers for stab. One method, one file; the file list is the table of contents."""
