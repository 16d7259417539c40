//! NumPy's npy format, versions 1 to 3: a magic number, a Python dictionary as text, the elements.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use super::{FileCause, FileError, write_atomic};
use crate::tensor::{DynTensor, check_bools};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use zellige_ir::DType;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// What the header says.
#[derive(PartialEq, Eq, Debug)]
struct Header {
    dtype: DType,
    big_endian: bool,
    fortran_order: bool,
    shape: Vec<usize>,
}

/// Reads the tensor of an npy file, either byte order and either index order.
pub fn load_npy(path: impl AsRef<Path>) -> Result<DynTensor, FileError> {
    let path = path.as_ref();
    let load = || -> Result<DynTensor, FileCause> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        read(&mut file, len)
    };
    load().map_err(FileError::at(path))
}

/// Writes an npy file, or replaces one. Fails for element types that NumPy lacks: `bf16` and the narrow floats.
pub fn save_npy(path: impl AsRef<Path>, tensor: &DynTensor) -> Result<(), FileError> {
    let path = path.as_ref();
    write_atomic(path, |w| write(w, tensor)).map_err(FileError::at(path))
}

/// Reads from `reader`, which holds `len` bytes.
fn read(reader: &mut impl Read, len: u64) -> Result<DynTensor, FileCause> {
    let mut start = [0; 8];
    if len < 10 {
        return Err(FileCause::Format("npy"));
    }
    reader.read_exact(&mut start)?;
    if &start[..6] != MAGIC || !(1..=3).contains(&start[6]) {
        return Err(FileCause::Format("npy"));
    }
    // Version 1 has a 16-bit header length, the later ones 32 bits.
    let width = if start[6] == 1 { 2 } else { 4 };
    let mut header_len = [0; 4];
    let truncated = |expected| FileCause::Truncated { expected, got: len };
    if len < 8 + width as u64 {
        return Err(truncated(8 + width as u64));
    }
    reader.read_exact(&mut header_len[..width])?;
    let data_start = 8 + width as u64 + u64::from(u32::from_le_bytes(header_len));
    if len < data_start {
        return Err(truncated(data_start));
    }
    let mut text = vec![0; u32::from_le_bytes(header_len) as usize];
    reader.read_exact(&mut text)?;
    let text = std::str::from_utf8(&text).map_err(|_| FileCause::Header("not UTF-8 text".to_owned()))?;
    let header = parse_header(text)?;

    let reversed: Vec<usize> = header.shape.iter().rev().copied().collect();
    let shape = if header.fortran_order { &reversed } else { &header.shape };
    let (_, bytes) = crate::tensor::size(header.dtype, shape).map_err(FileCause::Npy)?;
    let (expected, got) = (bytes as u64, len - data_start);
    if expected > got {
        return Err(truncated(data_start.saturating_add(expected)));
    }
    if expected < got {
        return Err(FileCause::TrailingBytes { extra: got - expected });
    }
    let mut io = Ok(());
    let tensor = DynTensor::filled(header.dtype, shape, |bytes| {
        io = reader.read_exact(bytes);
        if header.big_endian {
            bytes.chunks_exact_mut(header.dtype.bits() / 8).for_each(|element| element.reverse());
        }
        check_bools(header.dtype, bytes)
    });
    io?;
    let tensor = tensor.map_err(FileCause::Npy)?;
    if !header.fortran_order {
        return Ok(tensor);
    }
    let order: Vec<usize> = (0..tensor.rank()).rev().collect();
    tensor.permute(&order).and_then(|t| t.contiguous()).map_err(FileCause::Npy)
}

fn write(w: &mut impl Write, tensor: &DynTensor) -> Result<(), FileCause> {
    let code = descr_of(tensor.dtype()).ok_or(FileCause::NotInNpy(tensor.dtype()))?;
    let order = if tensor.dtype().bits() == 8 { '|' } else { '<' };
    let shape: String = tensor.shape().iter().map(|d| format!("{d}, ")).collect();
    // A Python tuple of one element keeps its comma.
    let shape = if tensor.rank() == 1 { shape.trim_end() } else { shape.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({shape}), }}");
    // Spaces up to a multiple of 64, the last byte a line feed.
    let version_1 = header.len() + 64 < usize::from(u16::MAX);
    let prefix = if version_1 { 10 } else { 12 };
    let padded = (prefix + header.len() + 1).next_multiple_of(64) - prefix;
    header.extend(std::iter::repeat_n(' ', padded - 1 - header.len()));
    header.push('\n');
    w.write_all(MAGIC)?;
    if version_1 {
        w.write_all(&[1, 0])?;
        w.write_all(&(padded as u16).to_le_bytes())?;
    } else {
        w.write_all(&[2, 0])?;
        w.write_all(&(padded as u32).to_le_bytes())?;
    }
    w.write_all(header.as_bytes())?;
    let packed = tensor.contiguous().map_err(FileCause::Npy)?;
    w.write_all(&packed.read().map_err(FileCause::Npy)?)?;
    Ok(())
}

/// NumPy's kind and size, if it has the type.
fn descr_of(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::Bool => "b1",
        DType::I8 => "i1",
        DType::I16 => "i2",
        DType::I32 => "i4",
        DType::I64 => "i8",
        DType::U8 => "u1",
        DType::U16 => "u2",
        DType::U32 => "u4",
        DType::U64 => "u8",
        DType::F16 => "f2",
        DType::F32 => "f4",
        DType::F64 => "f8",
        DType::Index | DType::BF16 | DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 | DType::E8M0 => return None,
    })
}

/// Reads the dictionary literal, of which only the three keys that NumPy writes are known.
fn parse_header(text: &str) -> Result<Header, FileCause> {
    let bad = |what: &str| FileCause::Header(what.to_owned());
    let mut rest = text.trim().strip_prefix('{').ok_or_else(|| bad("no dictionary"))?;
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            if !after.trim().is_empty() {
                return Err(bad("text after the dictionary"));
            }
            break;
        }
        let (key, after) = string(rest).ok_or_else(|| bad("a key is not a string"))?;
        let after = after.trim_start().strip_prefix(':').ok_or_else(|| bad("no `:` after a key"))?.trim_start();
        rest = match key {
            "descr" => {
                let (value, after) = string(after).ok_or_else(|| bad("`descr` is not a simple type"))?;
                descr = Some(value);
                after
            }
            "fortran_order" => {
                let (value, after) = match (after.strip_prefix("True"), after.strip_prefix("False")) {
                    (Some(after), _) => (true, after),
                    (_, Some(after)) => (false, after),
                    (None, None) => return Err(bad("`fortran_order` is not a boolean")),
                };
                fortran_order = Some(value);
                after
            }
            "shape" => {
                let (value, after) = after
                    .strip_prefix('(')
                    .and_then(|s| s.split_once(')'))
                    .ok_or_else(|| bad("`shape` is not a tuple"))?;
                shape = Some(tuple(value).ok_or_else(|| bad("`shape` is not a tuple of sizes"))?);
                after
            }
            _ => return Err(bad("an unknown key")),
        };
        rest = rest.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(after) => after,
            None if rest.starts_with('}') => rest,
            None => return Err(bad("no `,` after a value")),
        };
    }
    let descr = descr.ok_or_else(|| bad("no `descr`"))?;
    let unsupported = || FileCause::UnsupportedDescr(descr.escape_default().to_string());
    let (big_endian, code) = match descr.split_at_checked(1) {
        Some(("<" | "|" | "=", code)) => (false, code),
        Some((">", code)) => (true, code),
        _ => return Err(unsupported()),
    };
    Ok(Header {
        dtype: DType::ALL.into_iter().find(|&t| descr_of(t) == Some(code)).ok_or_else(unsupported)?,
        big_endian,
        fortran_order: fortran_order.ok_or_else(|| bad("no `fortran_order`"))?,
        shape: shape.ok_or_else(|| bad("no `shape`"))?,
    })
}

/// Splits a quoted string without escapes off the front.
fn string(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (value, rest) = text[1..].split_once(quote)?;
    (!value.contains('\\')).then_some((value, rest))
}

/// The sizes in the text between the parentheses of a tuple.
fn tuple(text: &str) -> Option<Vec<usize>> {
    let text = text.trim();
    let items = text.strip_suffix(',').unwrap_or(text);
    if items.is_empty() {
        return text.is_empty().then(Vec::new);
    }
    // `5L` is how Python 2 spelled it.
    items.split(',').map(|item| item.trim().trim_end_matches('L').parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::TensorError;
    use proptest::prelude::*;

    fn encoded(tensor: &DynTensor) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, tensor).expect("writing to memory");
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<DynTensor, FileCause> {
        read(&mut &bytes[..], bytes.len() as u64)
    }

    /// A file with the given header text and data.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn every_type_of_numpy_round_trips() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.npy");
        for dtype in DType::ALL.into_iter().filter(|&t| descr_of(t).is_some()) {
            for shape in [&[][..], &[1], &[6], &[2, 3], &[0, 4], &[1, 3, 2, 1]] {
                let values: Vec<f64> = (0..shape.iter().product::<usize>()).map(|v| v as f64).collect();
                let t = DynTensor::from_f64(dtype, shape, &values)?;
                save_npy(&path, &t)?;
                let back = load_npy(&path)?;
                assert_eq!((back.dtype(), back.shape()), (dtype, shape));
                assert_eq!(back.to_bytes()?, t.to_bytes()?);
            }
        }
        let refused = save_npy(&path, &DynTensor::zeros(DType::BF16, &[1])?).map_err(|e| e.to_string());
        assert!(refused.is_err_and(|m| m.ends_with("npy has no element type for bf16; save as safetensors")));
        Ok(())
    }

    #[test]
    fn the_header_is_what_numpy_writes() -> Result<(), TensorError> {
        // numpy.save of numpy.arange(3, dtype="<i2"), byte for byte.
        let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        expected.extend_from_slice(b"{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }");
        expected.resize(127, b' ');
        expected.extend_from_slice(b"\n\x00\x00\x01\x00\x02\x00");
        assert_eq!(encoded(&DynTensor::from_slice(&[3], &[0i16, 1, 2])?), expected);
        Ok(())
    }

    #[test]
    fn foreign_orders_are_converted() -> Result<(), Box<dyn std::error::Error>> {
        let columns = file("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3)}", &[1, 4, 2, 5, 3, 6]);
        assert_eq!(decode(&columns)?.to_vec::<u8>()?, [1, 2, 3, 4, 5, 6]);
        let big = file(
            "{\"shape\": (2,), \"descr\": \">i4\", \"fortran_order\": False, }\n",
            &[0, 0, 1, 2, 255, 255, 255, 254],
        );
        assert_eq!(decode(&big)?.to_vec::<i32>()?, [258, -2]);
        Ok(())
    }

    #[test]
    fn defects_are_named_in_one_line() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
        let cases = [
            (file(good, &[0; 7]), "file ends after"),
            (file(good, &[0; 9]), "1 bytes left over"),
            (file("{'descr': '<c8', 'fortran_order': False, 'shape': (2,), }", &[]), "`<c8` is not supported"),
            (file("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': ()}", &[]), "not a simple type"),
            (file("{'descr': '|b1', 'fortran_order': False, 'shape': (1,)}", &[9]), "byte 0 of a bool"),
            (file("{'descr': '<f4', 'shape': (2,)}", &[]), "no `fortran_order`"),
            (file("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", &[]), "tuple of sizes"),
            (file("{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904,9)}", &[]), "larger than"),
            (file("[]", &[]), "no dictionary"),
            (b"PK\x03\x04 is an npz".to_vec(), "not a npy file"),
            (b"\x93NUMPY\x02\x00\xff\xff".to_vec(), "file ends after 10 bytes"),
        ];
        for (bytes, expected) in cases {
            let message = decode(&bytes).map(|_| ()).map_err(|e| e.to_string()).expect_err(expected);
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn damaged_files_never_panic(
            cut in any::<prop::sample::Index>(),
            truncate: bool,
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = encoded(&DynTensor::zeros(DType::F32, &[3, 5]).expect("a valid tensor"));
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if truncate {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Err(e) = decode(&bytes) {
                prop_assert!(!e.to_string().contains('\n'));
            }
        }

        #[test]
        fn arbitrary_headers_never_panic(text in "[{}():',a-z0-9<>|TF \\\\\u{e9}]{0,60}") {
            let _ = parse_header(&text);
        }
    }
}
