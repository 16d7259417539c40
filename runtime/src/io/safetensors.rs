//! The safetensors format: a length, a JSON header, the tensors' bytes.
//!
//! The `safetensors` crate defines and checks the header; reading goes straight from the file into the tensors.

use super::{FileCause, FileError, write_atomic};
use crate::tensor::{DynTensor, TensorError, check_bools};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use zellige_ir::DType;

/// Longest header accepted, the limit that the reference implementation sets.
const MAX_HEADER: u64 = 100_000_000;

/// The content of a safetensors file.
///
/// Shapes are in elements. `f4e2m1` is the format's `F4` (two elements to a byte, as in memory), `e8m0` its `F8_E8M0`.
#[derive(Clone, Debug, Default)]
pub struct TensorFile {
    pub tensors: BTreeMap<String, DynTensor>,
    /// Free text, the format's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Reads a file.
    pub fn load(path: impl AsRef<Path>) -> Result<TensorFile, FileError> {
        let path = path.as_ref();
        let read = || -> Result<TensorFile, FileCause> {
            let mut file = File::open(path)?;
            let len = file.metadata()?.len();
            TensorFile::read(&mut file, len)
        };
        read().map_err(FileError::at(path))
    }

    /// Reads from `reader`, which holds `len` bytes.
    fn read(reader: &mut impl Read, len: u64) -> Result<TensorFile, FileCause> {
        let mut prefix = [0; 8];
        if len < 8 {
            return Err(FileCause::Format("safetensors"));
        }
        reader.read_exact(&mut prefix)?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER {
            return Err(FileCause::Format("safetensors"));
        }
        if header_len > len - 8 {
            return Err(FileCause::Truncated { expected: 8 + header_len, got: len });
        }
        let mut header = vec![0; header_len as usize];
        reader.read_exact(&mut header)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|e| FileCause::Header(one_line(&e)))?;
        let (expected, got) = (header.data_len() as u64, len - 8 - header_len);
        if expected > got {
            return Err(FileCause::Truncated { expected: expected.saturating_add(8 + header_len), got: len });
        }
        if expected < got {
            return Err(FileCause::TrailingBytes { extra: got - expected });
        }
        let mut content = TensorFile::default();
        // In the order of their offsets, which are gapless: the header has been checked.
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else { continue };
            let tensor = read_tensor(reader, &name, info)?;
            content.tensors.insert(name, tensor);
        }
        content.metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(content)
    }

    /// The tensor `name` of the file at `path`, for messages.
    pub fn get(&self, path: impl AsRef<Path>, name: &str) -> Result<&DynTensor, FileError> {
        self.tensors.get(name).ok_or_else(|| {
            let available = self.tensors.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
            let available = if available.is_empty() { "none".to_owned() } else { available };
            FileError::at(path.as_ref())(FileCause::NoSuchTensor { name: name.to_owned(), available })
        })
    }

    /// Writes a file, or replaces one. The same content always gives the same bytes.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), FileError> {
        let path = path.as_ref();
        write_atomic(path, |w| self.write(w)).map_err(FileError::at(path))
    }

    fn write(&self, w: &mut impl Write) -> Result<(), FileCause> {
        // Wide types first, as the reference implementation does: every tensor is then aligned to its element.
        let mut order: Vec<(&String, &DynTensor)> = self.tensors.iter().collect();
        order.sort_by_key(|(name, tensor)| (std::cmp::Reverse(tensor.dtype().bits()), *name));
        let mut header = serde_json::Map::new();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".to_owned(), serde_json::json!(self.metadata));
        }
        let mut offset = 0;
        for (name, tensor) in &order {
            let info = TensorInfo {
                dtype: to_file(tensor.dtype()).ok_or_else(|| FileCause::UnsupportedType {
                    name: (*name).clone(),
                    dtype: tensor.dtype().to_string(),
                })?,
                shape: tensor.shape().to_vec(),
                data_offsets: (offset, offset + tensor.byte_len()),
            };
            offset = info.data_offsets.1;
            header.insert((*name).clone(), serde_json::to_value(info).map_err(|e| FileCause::Header(one_line(&e)))?);
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        w.write_all(&(header.len() as u64).to_le_bytes())?;
        w.write_all(&header)?;
        for (name, tensor) in order {
            let tensor_error = |source| FileCause::Tensor { name: name.clone(), source };
            let packed = tensor.contiguous().map_err(tensor_error)?;
            w.write_all(&packed.read().map_err(tensor_error)?)?;
        }
        Ok(())
    }
}

/// An error of the JSON layer without line breaks.
fn one_line(e: &impl ToString) -> String {
    e.to_string().replace(['\n', '\r'], " ")
}

fn read_tensor(reader: &mut impl Read, name: &str, info: &TensorInfo) -> Result<DynTensor, FileCause> {
    let tensor_error = |source| FileCause::Tensor { name: name.to_owned(), source };
    let dtype = from_file(info.dtype)
        .ok_or_else(|| FileCause::UnsupportedType { name: name.to_owned(), dtype: info.dtype.to_string() })?;
    let mut io = Ok(());
    let tensor = DynTensor::filled(dtype, &info.shape, |bytes| {
        io = reader.read_exact(bytes);
        check_bools(dtype, bytes)
    });
    io?;
    tensor.map_err(|e: TensorError| tensor_error(e))
}

fn to_file(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::Bool => Dtype::BOOL,
        DType::I8 => Dtype::I8,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::U8 => Dtype::U8,
        DType::U16 => Dtype::U16,
        DType::U32 => Dtype::U32,
        DType::U64 => Dtype::U64,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F8E4M3 => Dtype::F8_E4M3,
        DType::F8E5M2 => Dtype::F8_E5M2,
        DType::F4E2M1 => Dtype::F4,
        DType::E8M0 => Dtype::F8_E8M0,
        DType::Index => return None,
    })
}

fn from_file(dtype: Dtype) -> Option<DType> {
    // The crate's enum may grow: a type it adds is one that we do not have.
    DType::ALL.into_iter().find(|&t| to_file(t) == Some(dtype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> TensorFile {
        let mut content = TensorFile::default();
        for (i, dtype) in DType::ALL.into_iter().filter(|&t| t != DType::Index).enumerate() {
            let values: Vec<f64> = (0..12).map(|v| f64::from((v * (i as u32 + 1)) % 7) * 0.5).collect();
            let tensor = DynTensor::from_f64(dtype, &[3, 4], &values).expect("a valid tensor");
            content.tensors.insert(format!("t.{dtype}"), tensor);
        }
        content.metadata.insert("format".to_owned(), "zellige \"test\"\n".to_owned());
        content
    }

    fn encoded(content: &TensorFile) -> Vec<u8> {
        let mut bytes = Vec::new();
        content.write(&mut bytes).expect("writing to memory");
        bytes
    }

    fn read(bytes: &[u8]) -> Result<TensorFile, FileCause> {
        TensorFile::read(&mut &bytes[..], bytes.len() as u64)
    }

    #[test]
    fn every_type_round_trips_through_a_file() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.safetensors");
        let content = sample();
        content.save(&path)?;
        let back = TensorFile::load(&path)?;
        assert_eq!(back.metadata, content.metadata);
        assert_eq!(back.tensors.len(), 17);
        for (name, tensor) in &content.tensors {
            let got = &back.tensors[name];
            assert_eq!((got.dtype(), got.shape()), (tensor.dtype(), tensor.shape()), "{name}");
            assert_eq!(got.to_bytes()?, tensor.to_bytes()?, "{name}");
        }
        assert_eq!(encoded(&back), std::fs::read(&path)?);
        let missing = back.get(&path, "w").map(|_| ()).map_err(|e| e.to_string());
        assert!(missing.is_err_and(|m| m.contains("no tensor `w`; the file has `t.bf16`")));
        Ok(())
    }

    #[test]
    fn the_reference_implementation_reads_what_we_write() -> Result<(), Box<dyn std::error::Error>> {
        let content = sample();
        let bytes = encoded(&content);
        let theirs = safetensors::SafeTensors::deserialize(&bytes)?;
        for (name, tensor) in &content.tensors {
            assert_eq!(theirs.tensor(name)?.data(), tensor.to_bytes()?, "{name}");
            assert_eq!(theirs.tensor(name)?.shape(), tensor.shape(), "{name}");
        }
        Ok(())
    }

    #[test]
    fn views_are_written_without_their_gaps() -> Result<(), Box<dyn std::error::Error>> {
        let t = DynTensor::from_slice(&[2, 3], &[1i16, 2, 3, 4, 5, 6])?.transpose(0, 1)?;
        let content = TensorFile { tensors: [("t".to_owned(), t.clone())].into(), ..Default::default() };
        assert_eq!(read(&encoded(&content))?.tensors["t"].to_vec::<i16>()?, [1, 4, 2, 5, 3, 6]);
        Ok(())
    }

    #[test]
    fn defects_are_named_in_one_line() {
        let load = |header: &str, data: &[u8]| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(data);
            read(&bytes).map(|_| ()).map_err(|e| e.to_string()).expect_err("a defect")
        };
        let cases = [
            (load(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 7]), "file ends after"),
            (load(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 9]), "1 bytes left over"),
            (load(r#"{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]), "C64 is not supported"),
            (load(r#"{"a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}"#, &[7]), "`a`: byte 0 of a bool"),
            (load(r#"{"a":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}}"#, &[0; 3]), "packed f4e2m1"),
            (load(r#"{"a":{"dtype":"U8","shape":[9e99],"data_offsets":[0,1]}}"#, &[0]), "malformed header"),
            (load(r#"{"a":{"dtype":"U8","shape":[18446744073709551615,2],"data_offsets":[0,1]}}"#, &[0]), "malformed"),
            (load("{", &[]), "malformed header"),
            (read(&[0xff; 20]).map(|_| ()).map_err(|e| e.to_string()).expect_err("a defect"), "not a safetensors file"),
            (read(b"short").map(|_| ()).map_err(|e| e.to_string()).expect_err("a defect"), "not a safetensors file"),
        ];
        for (message, expected) in cases {
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        }
        let missing = TensorFile::load("/nonexistent/x.safetensors").map(|_| ()).map_err(|e| e.to_string());
        assert!(missing.is_err_and(|m| m.starts_with("/nonexistent/x.safetensors: ")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn damaged_files_never_panic(
            cut in any::<prop::sample::Index>(),
            truncate: bool,
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = encoded(&sample());
            for (at, value) in flips {
                // Mostly in the header, where structure is.
                let at = at.index(if value % 4 == 0 { bytes.len() } else { 1200 });
                bytes[at] = value;
            }
            if truncate {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Err(e) = read(&bytes) {
                prop_assert!(!e.to_string().contains('\n'));
            }
        }
    }
}
