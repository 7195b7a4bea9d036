output "home" {
  description = "The home region's bucket: {bucket, bucket_arn, kms_key_arn}."
  value = {
    bucket      = module.home.bucket
    bucket_arn  = module.home.bucket_arn
    kms_key_arn = module.home.kms_key_arn
  }
}

output "dr" {
  description = "The DR region's bucket: {bucket, bucket_arn, kms_key_arn}."
  value = {
    bucket      = module.dr.bucket
    bucket_arn  = module.dr.bucket_arn
    kms_key_arn = module.dr.kms_key_arn
  }
}
