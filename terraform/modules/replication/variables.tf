variable "source_bucket" {
  description = "What is copied, {bucket, bucket_arn, kms_key_arn}: outputs of bucket. In the provider's region."
  type        = object({ bucket = string, bucket_arn = string, kms_key_arn = string })
}

variable "destination_bucket" {
  description = "Where to, {bucket, bucket_arn, kms_key_arn}: outputs of bucket."
  type        = object({ bucket = string, bucket_arn = string, kms_key_arn = string })
}

variable "destination_region" {
  description = "The region of the destination."
  type        = string
}

variable "enabled" {
  description = "False stops the copying, and leaves the rule."
  type        = bool
  default     = true
}

variable "storage_class" {
  description = "The storage class that copies are made in."
  type        = string
  default     = "STANDARD"
}

variable "tags" {
  description = "Tags of the role."
  type        = map(string)
  default     = {}
}
