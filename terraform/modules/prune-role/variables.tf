variable "name" {
  description = "The name of the role and of its instance profile."
  type        = string
}

variable "shards" {
  description = "The shards that it prunes."
  type        = set(string)
}

variable "bucket_arn" {
  description = "The bucket that it prunes: one region's. Each region has a prune of its own."
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

variable "replica_bucket_arn" {
  description = "The bucket that this one is copied to, of which prune sees what is there; null: none."
  type        = string
  default     = null
}

variable "ebs_region" {
  description = "The bucket's region, whose EBS snapshots of these shards it deletes; null: none."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of the role and its profile."
  type        = map(string)
  default     = {}
}
