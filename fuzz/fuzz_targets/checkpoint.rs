// SPDX-License-Identifier: BSD-2-Clause

//! A checkpoint's four files.
#![no_main]

bhyve_fuzz::target!(checkpoint);
