# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernel, one extension module. Whatever it takes, its Python twin takes with the same values."""

from libc.stdlib cimport calloc, free, malloc

cdef extern from "Python.h":
    char* PyBytes_AsString(object) except NULL
    Py_ssize_t PyBytes_Size(object) except -1
    object PyBytes_FromStringAndSize(const char*, Py_ssize_t)

cdef extern from *:
    const char* KERNEL_SOURCE

SOURCE = KERNEL_SOURCE.decode()
"""The digest of what this was made from (tools/build_kernel.py)."""

include "bytes.pxi"
include "xxh3.pxi"
include "fields.pxi"
include "values.pxi"
include "rows.pxi"
include "json.pxi"
include "protobuf.pxi"
include "probing.pxi"
include "names.pxi"
include "claims.pxi"
include "parts.pxi"
include "sums.pxi"
include "keys.pxi"
include "view.pxi"
include "dims.pxi"
include "dictionaries.pxi"
include "cells.pxi"
include "json_cells.pxi"
include "protobuf_cells.pxi"
include "id_hashes.pxi"
include "spans.pxi"
include "span_lines.pxi"
include "homes.pxi"
include "segment_columns.pxi"
include "parquet.pxi"
include "taking.pxi"
include "row_sizes.pxi"
include "chosen_rows.pxi"
