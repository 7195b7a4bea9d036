variable "name" {
  description = "The name of the role and of its instance profile."
  type        = string
}

variable "shard" {
  description = "The shard that is recovered: the first part of its keys, and the value of the tag mysql-pitr:shard."
  type        = string
}

variable "region" {
  description = "The region that is recovered in."
  type        = string
}

variable "bucket_arn" {
  description = "That region's bucket."
  type        = string
}

variable "prefix" {
  description = "What [store] url names behind the bucket, without a slash at its ends; empty for none."
  type        = string
  default     = ""
}

variable "kms_key_arn" {
  description = "The key of that bucket."
  type        = string
}

variable "ebs_kms_key_arns" {
  description = "The keys of that region's snapshot copies, and of the volumes that are made of them. Empty where neither is encrypted."
  type        = list(string)
  default     = []
}

variable "tags" {
  description = "Tags of the role and its profile."
  type        = map(string)
  default     = {}
}
