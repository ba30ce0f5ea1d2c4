//! Makes s3s-fs what the tests take it for. It derives the names of files from keys, and with ours they become longer than
//! a file system allows; so the many zeros of a key are written shorter in its directory. And it calls some things by
//! other names than Amazon does. Clients never see any of it.

use std::path::PathBuf;

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

const ZEROS: &str = "000000000000000000";
const SHORT: &str = "~";

/// The name of an object in its directory.
pub(crate) fn shorten(key: &str) -> String {
    key.replace(ZEROS, SHORT)
}

/// The key of an object by its name in its directory.
pub(crate) fn lengthen(name: &str) -> String {
    name.replace(SHORT, ZEROS)
}

/// s3s-fs behind shorter names.
pub(crate) struct ShortNames {
    pub(crate) files: FileSystem,
    pub(crate) directory: PathBuf,
}

/// Requests about one key, which are handed on with its short name.
macro_rules! by_short_name {
    ($($name:ident: $input:ty => $output:ty;)*) => {
        #[async_trait::async_trait]
        impl S3 for ShortNames {
            $(async fn $name(&self, mut request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                if !self.directory.join(&request.input.bucket).exists() {
                    return Err(s3_error!(NoSuchBucket));
                }
                request.input.key = shorten(&request.input.key);
                self.files.$name(request).await
            })*

            async fn complete_multipart_upload(
                &self,
                mut request: S3Request<CompleteMultipartUploadInput>,
            ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
                let upload = format!(".upload-{}.json", request.input.upload_id);
                if !self.directory.join(upload).exists() {
                    return Err(s3_error!(NoSuchUpload));
                }
                request.input.key = shorten(&request.input.key);
                self.files.complete_multipart_upload(request).await
            }

            async fn copy_object(
                &self,
                mut request: S3Request<CopyObjectInput>,
            ) -> S3Result<S3Response<CopyObjectOutput>> {
                if let CopySource::Bucket { key, .. } = &mut request.input.copy_source {
                    *key = shorten(key).into();
                }
                request.input.key = shorten(&request.input.key);
                self.files.copy_object(request).await
            }

            async fn delete_objects(
                &self,
                mut request: S3Request<DeleteObjectsInput>,
            ) -> S3Result<S3Response<DeleteObjectsOutput>> {
                if !self.directory.join(&request.input.bucket).exists() {
                    return Err(s3_error!(NoSuchBucket));
                }
                for object in &mut request.input.delete.objects {
                    object.key = shorten(&object.key);
                }
                let mut response = self.files.delete_objects(request).await?;
                for object in response.output.deleted.iter_mut().flatten() {
                    object.key = object.key.as_deref().map(lengthen);
                }
                Ok(response)
            }

            async fn list_objects_v2(
                &self,
                mut request: S3Request<ListObjectsV2Input>,
            ) -> S3Result<S3Response<ListObjectsV2Output>> {
                let input = &mut request.input;
                input.prefix = input.prefix.as_deref().map(shorten);
                input.start_after = input.start_after.as_deref().map(shorten);
                let mut response = self.files.list_objects_v2(request).await?;
                let output = &mut response.output;
                output.prefix = output.prefix.as_deref().map(lengthen);
                for object in output.contents.iter_mut().flatten() {
                    object.key = object.key.as_deref().map(lengthen);
                }
                for prefix in output.common_prefixes.iter_mut().flatten() {
                    prefix.prefix = prefix.prefix.as_deref().map(lengthen);
                }
                Ok(response)
            }
        }
    };
}

by_short_name! {
    get_object: GetObjectInput => GetObjectOutput;
    head_object: HeadObjectInput => HeadObjectOutput;
    put_object: PutObjectInput => PutObjectOutput;
    delete_object: DeleteObjectInput => DeleteObjectOutput;
    create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput;
    upload_part: UploadPartInput => UploadPartOutput;
    abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_stands_for_one_key() {
        let key = "checkpoints/00000000000000000001-00000000000000000012/0000000001-x";
        assert_eq!(shorten(key), "checkpoints/~01-~12/0000000001-x");
        assert_eq!(lengthen(&shorten(key)), key);
    }
}
