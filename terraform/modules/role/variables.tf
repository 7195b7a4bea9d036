variable "name" {
  description = "The name of the role and of its instance profile."
  type        = string
}

variable "description" {
  description = "What the role is for."
  type        = string
}

variable "shards" {
  description = "The shards whose part of the bucket it lists and decrypts."
  type        = set(string)
}

variable "bucket_arn" {
  description = "The bucket."
  type        = string
}

variable "prefix" {
  description = "What [store] url names behind the bucket, without a slash at its ends; empty for none."
  type        = string
}

variable "kms_key_arn" {
  description = "The key of that bucket."
  type        = string
}

variable "region" {
  description = "The region in which keys are used; by default any."
  type        = string
  default     = "*"
}

variable "policies" {
  description = "What else it may do: policies in JSON, by their names."
  type        = map(string)
}

variable "ebs_key_arns" {
  description = "The keys of EBS snapshots and volumes that it makes. Empty where neither is encrypted."
  type        = list(string)
  default     = []
}

variable "tags" {
  description = "Tags of the role and its profile."
  type        = map(string)
}
